"""The aggregator: what happens to a message once it has arrived. It joins admission, store, ledger and expert log; no sockets here.

Every method that takes an envelope follows the fixed order of admission.py. A message that is refused has changed nothing; one
that is answered is durable.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from compeft_core.errors import CompeftError, FormatError
from compeft_proto import envelope as dsse
from compeft_proto.base_model import NO_BASE_MODEL
from compeft_proto.convert import layout_from_proto
from compeft_proto.errors import ConflictError, ForbiddenError, UnknownExpertError, UnknownKeyError
from compeft_proto.expert_manifest import Manifest
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.sealed_box import open_box, relay_key_of
from compeft_proto.state_steps import initial_state
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.aggregation.access import Access
from compeft_server.aggregation.catch_up import CatchUp, Way
from compeft_server.aggregation.expert_log import ExpertLog
from compeft_server.aggregation.locks import KeyedLocks, ReadWriteLock
from compeft_server.aggregation.packages import Packages
from compeft_server.aggregation.rounds import Rounds
from compeft_server.chunks.chunked_payload import Chunked
from compeft_server.chunks.disk_space import UploadQuota
from compeft_server.chunks.store import ChunkStore
from compeft_server.domain import admission
from compeft_server.domain.admission import Situation, weight_of
from compeft_server.domain.channels import Channel, channel_of
from compeft_server.domain.limits import Limits
from compeft_server.domain.records import Expert, Member, Round, Submission, Version
from compeft_server.ledger.ledger import Ledger

Message = pb.UpdateManifest | pb.Genesis | pb.Package
OFFERS: dict[str, dsse.PayloadType[Any]] = {kind.name: kind for kind in (dsse.UPDATE, dsse.GENESIS, dsse.PACKAGE)}
"""What may be submitted, by payload type."""
SYNCING = 8
"""Chunks that are made durable at the same time: a disk takes many syncs side by side in the time of one."""
CHECKERS = {False: 2, True: 1}
"""Payloads that are decoded at the same time, above `admission.LARGE_BYTES` and below: each needs a few times its size in memory."""


Rate = Callable[[str], None]
"""Told the keyid of each message whose signature holds; raises ThrottledError if there are too many."""


def _any_rate(keyid: str) -> None:
    """Let every call in."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A manifest that is genuine and parses; whether it gets in is another matter. `digest` names it, `envelope` is it, sealed."""

    member: Member
    message: Message
    digest: bytes
    envelope: bytes

    @property
    def refs(self) -> Sequence[pb.ChunkRef]:
        """The chunks it names, in order."""
        return self.message.snapshot.chunks if isinstance(self.message, pb.Genesis) else self.message.chunks


@dataclass(frozen=True, slots=True)
class Upload:
    """An admitted offer whose chunks may still be missing. `needed` are (reference, bytes already here), in order; `checked` are those
    that have arrived since and are what their digest says.
    """

    offer: Offer
    needed: tuple[tuple[pb.ChunkRef, int], ...]
    checked: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class SyncAnswer:
    """What a client is told: the sealed statement, and the way to the version it wants, whose chunks it may ask for."""

    member: Member
    request: pb.SyncRequest
    statement: Envelope
    way: Way
    want_version: int
    dense_fp32_bytes: int


class Aggregator:
    """One aggregator over one store and one ledger. `now_ms` is its clock, `earlier` are public keys that it had before."""

    def __init__(
        self,
        key: SigningKey,
        store: ChunkStore,
        ledger: Ledger,
        limits: Limits,
        now_ms: Callable[[], int],
        earlier: Sequence[PublicKey] = (),
    ) -> None:
        self._key, self._store, self._ledger, self._limits, self._now_ms = key, store, ledger, limits, now_ms
        self._log = ExpertLog(key.public, store, ledger, earlier)
        self._access = Access(ledger, self._log, now_ms)
        self._pool = ThreadPoolExecutor(SYNCING)
        self._rounds = Rounds(key, store, ledger, self._log, self._access, limits, now_ms, self._pool)
        self._catch_up = CatchUp(key, store, ledger, self._log)
        self._packages = Packages(key, ledger, self._log, self._access, limits, now_ms)
        self._relay_key = relay_key_of(key)
        self._gate, self._checks, self._members = ReadWriteLock(), KeyedLocks(), KeyedLocks()
        self._checking = {large: threading.Semaphore(count) for large, count in CHECKERS.items()}
        self._room = UploadQuota(store.partial, limits)

    # Submitting: open, admit, receive each needed chunk, finish

    def open(self, envelope: Envelope, rate: Rate = _any_rate) -> Offer:
        """Steps 1 to 4 for a sealed UpdateManifest, Genesis or Package. Errors: also those of `rate`, before anything is parsed."""
        verified, member = self._verified(envelope, rate)
        kind = OFFERS.get(verified.payload_type, dsse.UPDATE)
        message: Message = dsse.parse(verified, kind)
        return Offer(member, message, verified.digest, envelope.SerializeToString())

    def unbox(self, box: bytes) -> xp.SubmitRequest:
        """What a client closed to the relay key of a statement. Errors: FormatError."""
        return open_box(self._relay_key, xp.SubmitRequest, box)

    def admit(self, offer: Offer) -> Upload | Envelope:
        """Steps 5 and 6, by the manifest alone; the answer again if this very update is in already."""
        known = self._known(offer)
        if isinstance(known, Envelope):
            return known
        sender, own = offer.member.public.keyid, self._own_chunks(offer)
        once = {ref.sha256: ref for ref in offer.refs if ref.sha256 not in own or not self._store.has(ref.sha256)}
        return Upload(offer, tuple((ref, self._store.received(sender, ref.sha256)) for ref in once.values()))

    def _own_chunks(self, offer: Offer) -> frozenset[bytes]:
        """Chunks that need not be sent again: of a package, those of earlier versions that this member may fetch. Whoever names another
        chunk must have its bytes: knowing a digest proves nothing, and the answer must not tell whether a chunk is here.
        """
        return (
            self._packages.readable_chunks(offer.message, offer.member) if isinstance(offer.message, pb.Package) else frozenset()
        )

    def make_room(self, keyid: str, missing_bytes: int) -> None:
        """Whether so many bytes may come from this client now. Errors: StorageFullError."""
        self._room.check(keyid, missing_bytes)

    def receive(self, upload: Upload, ref: pb.ChunkRef, data: bytes) -> int:
        """The next bytes of a needed chunk; returns how many are here. Errors: FormatError if they are too many."""
        keyid = upload.offer.member.public.keyid
        here = self._store.received(keyid, ref.sha256) + len(data)
        if here > ref.size:
            self._store.drop(keyid, ref.sha256)
            raise FormatError(f"chunk {ref.sha256.hex()[:16]} is of {ref.size} bytes, {here} were sent")
        self._store.append(keyid, ref.sha256, data)
        if here == ref.size:
            self._store.check(keyid, ref.sha256)
            upload.checked.add(ref.sha256)
        return here

    def finish(self, upload: Upload) -> Envelope:
        """All chunks are here: step 7; then, with no round opened or closed meanwhile, steps 5 and 6 once more and steps 8 to 10.

        Errors: those of `admit`, and `admission.admit_payload`.
        """
        offer, keyid = upload.offer, upload.offer.member.public.keyid
        member = self._ledger.member(keyid)
        if member is None or member.revoked:
            raise UnknownKeyError(f"key {keyid} was revoked just now")
        with self._checks.take(keyid):
            package = self._check_chunks(offer, upload.checked)
            if isinstance(offer.message, pb.UpdateManifest):
                with self._gate.shared(), self._members.take(member.name):
                    return self._record(offer, package)
            with self._gate.alone():
                return self._record(offer, package)

    def _record(self, offer: Offer, package: Manifest | None) -> Envelope:
        """Steps 5 and 6 once more, and 8 to 10. `package` is what the file of a package says of itself."""
        known = self._known(offer)
        if isinstance(known, Envelope):
            return known
        keyid = offer.member.public.keyid
        list(self._pool.map(lambda ref: self._store.commit(keyid, ref.sha256), offer.refs))
        if isinstance(offer.message, pb.Genesis):
            return self._create(offer.message, offer)
        if isinstance(offer.message, pb.UpdateManifest):
            return self._accept(offer.message, offer, known)
        file: Manifest = package  # type: ignore[assignment]  # `_check_chunks` has read one: the message is a package
        return self._packages.publish(offer.message, offer.member, offer.envelope, file)

    # Syncing

    def sync(self, envelope: Envelope, rate: Rate = _any_rate) -> SyncAnswer:
        """Answer a sealed SyncRequest. Errors: UnknownExpertError, ForbiddenError, ExpiredError, FormatError."""
        verified, member = self._verified(envelope, rate)
        request = dsse.parse(verified, dsse.SYNC_REQUEST)
        admission.admit_time(request.issued_at_ms, request.issued_at_ms + self._limits.max_age_ms, self._now_ms(), self._limits)
        member = admission.admit_member(member, request.keyid, "edge", "conductor", "reader")
        expert = self._access.expert(member, request.expert, carried=bool(request.relay_key))
        with self._gate.shared(), self._members.take(member.name):
            return self._answer(member, expert, request)

    def stream(self, answer: SyncAnswer, sha256: bytes, offset: int) -> Iterator[bytes]:
        """A chunk of an answer from `offset` on. Errors: ForbiddenError if the answer does not name it."""
        if sha256 not in answer.way.chunks:
            raise ForbiddenError(f"chunk {sha256.hex()[:16]} belongs to no version of this answer")
        return self._store.stream(sha256, offset)

    # Conducting

    def conduct(self, envelope: Envelope, rate: Rate = _any_rate) -> Envelope:
        """Obey a sealed RoundOpening, RoundClosing or QualityReport of a conductor; a sealed statement back."""
        verified, member = self._verified(envelope, rate)
        with self._gate.alone():
            return self._rounds.conduct(verified, member)

    def _verified(self, envelope: Envelope, rate: Rate) -> tuple[dsse.Verified, Member]:
        """Steps 1 and 2, and whose key it is; then `rate` may refuse that key."""
        found: dict[str, Member] = {}

        def lookup(keyid: str) -> PublicKey | None:
            member = self._ledger.member(keyid)
            if member is None or member.revoked:
                return None
            found[member.public.keyid] = member
            return member.public

        verified = dsse.verify(envelope, lookup)
        rate(verified.keyid)
        return verified, found[verified.keyid]

    def _known(self, offer: Offer) -> Envelope | Round | None:
        """Steps 5 and 6: the answer that was given before; or, if the offer may come in, the round that an update joins."""
        message = offer.message
        if isinstance(message, pb.Genesis):
            self._admit_genesis(message, offer.member)
            return None
        if isinstance(message, pb.Package):
            return self._packages.admit(message, offer.member)
        situation = self._situation(message, offer)
        same = admission.admit_update(message, situation, self._now_ms(), self._limits)
        return situation.joins if same is None else Envelope.FromString(same.receipt)

    def _situation(self, update: pb.UpdateManifest, offer: Offer) -> Situation:
        named = self._ledger.standing(update.expert, update.run, update.round, offer.member.public.keyid, offer.digest)
        expert, found, joins, other = self._log.find(update.expert), named.round, self._joined(named.round), named.other
        if named.same is not None:
            joins = self._ledger.round(named.same.expert, named.same.run, named.same.round)
        elif joins is not None and joins is not found:
            other = self._ledger.standing(joins.expert, joins.run, joins.round, offer.member.public.keyid, offer.digest).other
        return Situation(
            member=offer.member,
            expert=expert,
            round=found,
            joins=joins,
            base_state_digest=self._log.state_digest(update.expert, found.base_version) if found else b"",
            same=named.same,
            other=other,
            accepted_sequence=named.accepted_sequence,
            policy=self._access.decide(offer.member.name, offer.member.role, update.expert, "publish", update.base_version),
            base_model=self._log.base_model(expert) if expert else NO_BASE_MODEL,
        )

    def _joined(self, found: Round | None) -> Round | None:
        """The round that an update of round `found` would be merged in: the same while it is open, then the run's open one, if that
        takes late updates, and nothing but rounds of this run has led from the one's base to the other's.
        """
        if found is None or found.closed_at_ms is None:
            return found
        rounds = self._ledger.rounds(found.expert)
        takes = next((r for r in rounds if r.run == found.run and r.closed_at_ms is None and r.max_staleness > 0), None)
        if takes is None:
            return found
        since = self._ledger.versions(found.expert, found.base_version, takes.base_version)
        return takes if all(v.run == found.run for v in since) else found

    def _check_chunks(self, offer: Offer, checked: set[bytes]) -> Manifest | None:
        """Step 7; what a package's file says of itself. What was sent is dropped if it is not what it should be."""
        keyid = offer.member.public.keyid
        try:
            with self._checking[sum(ref.size for ref in offer.refs) > admission.LARGE_BYTES]:
                return self._check_payload(offer, checked)
        except CompeftError:
            for ref in offer.refs:
                self._store.drop(keyid, ref.sha256)
            raise

    def _check_payload(self, offer: Offer, checked: set[bytes]) -> Manifest | None:
        keyid, message = offer.member.public.keyid, offer.message
        payload = Chunked(offer.refs, lambda sha256: self._store.peek(keyid, sha256), checked)
        if isinstance(message, pb.Package):
            return self._packages.check(message, payload[:])
        if isinstance(message, pb.Genesis):
            initial_state(message, layout_from_proto(message.layout), payload[:])
        else:
            encoded = admission.admit_payload(message, payload, self._log.expert(message.expert), self._limits)
            if encoded is not None:
                self._log.keep(offer.digest, encoded)
        return None

    def _admit_genesis(self, genesis: pb.Genesis, member: Member) -> None:
        admission.admit_time(genesis.issued_at_ms, genesis.issued_at_ms + self._limits.max_age_ms, self._now_ms(), self._limits)
        admission.admit_member(member, genesis.keyid, "conductor")
        admission.admit_genesis(genesis, self._limits)
        self._access.require_name(member, genesis.expert)
        if self._ledger.expert(genesis.expert) is not None:
            raise ConflictError(f"expert {genesis.expert!r} exists already: choose another name or continue it")

    def _create(self, genesis: pb.Genesis, offer: Offer) -> Envelope:
        layout = layout_from_proto(genesis.layout)
        now = self._now_ms()
        manifest = pb.VersionManifest(
            expert=genesis.expert,
            state_digest=genesis.state_digest,
            base_model_digest=genesis.base_model_digest,
            layout_digest=layout.digest,
            adapter_config_digest=genesis.adapter_config_digest,
            chunks=offer.refs,
            issued_at_ms=now,
            genesis=genesis,
        )
        sealed = dsse.seal(self._key, dsse.VERSION, manifest)
        expert = Expert(genesis.expert, genesis.base_model_digest, genesis.adapter_config_digest, layout)
        payload_bytes = sum(ref.size for ref in offer.refs)
        first = Version(genesis.expert, 0, sealed.SerializeToString(), genesis.state_digest, (), "", 0, payload_bytes, 0.0, now)
        self._ledger.create(expert, first)
        return sealed

    def _accept(self, update: pb.UpdateManifest, offer: Offer, joins: Round | None) -> Envelope:
        now, number = self._now_ms(), joins.round if joins else update.round
        receipt = pb.Receipt(
            update_digest=offer.digest,
            expert=update.expert,
            run=update.run,
            round=number,
            keyid=update.keyid,
            sequence=update.sequence,
            payload_bytes=sum(ref.size for ref in offer.refs),
            accepted_at_ms=now,
        )
        sealed = dsse.seal(self._key, dsse.RECEIPT, receipt)
        self._ledger.accept(
            Submission(
                update_digest=offer.digest,
                expert=update.expert,
                run=update.run,
                round=number,
                keyid=update.keyid,
                sequence=update.sequence,
                weight=weight_of(update),
                envelope=offer.envelope,
                receipt=sealed.SerializeToString(),
                accepted_at_ms=now,
            )
        )
        return sealed

    def _channel(self, request: pb.SyncRequest, head: int) -> Channel | None:
        """The channel that a request follows, if any. Errors: FormatError if it also names a version; as `channel_of`."""
        if not request.channel:
            return None
        if request.HasField("want_version"):
            raise FormatError(f"request for version {request.want_version} and for channel {request.channel[:20]!a}: name one")
        return channel_of(request.channel, request.expert, self._ledger.terms.channel_moves(request.expert), head)

    def _answer(self, member: Member, expert: Expert, request: pb.SyncRequest) -> SyncAnswer:
        head = self._ledger.head(expert.name)
        channel = self._channel(request, head)
        want = channel.version if channel else request.want_version if request.HasField("want_version") else head
        have = request.have_version if request.HasField("have_version") else -1
        decision = self._access.require(member, expert.name, "fetch", want)
        if want > head or (have > want and channel is None):
            raise UnknownExpertError(f"{expert.name} has versions 0 to {head}; asked was for {have + 1} to {want}")
        way = Way() if request.statement_only else self._way(expert, have, want)
        if way.versions or way.snapshot:
            self._ledger.terms.record_fetch(expert.name, want, request.keyid, decision.reason, self._now_ms())
        sequences = self._ledger.sequences(expert.name, request.keyid)
        if request.sequence > sequences.accepted:
            self._ledger.settle(expert.name, request.keyid, request.sequence)
        version = self._log.version(expert.name, want)
        parameters = self._packages.parameters(version) if expert.kind == "package" else expert.layout.size
        statement = pb.SyncStatement(
            expert=expert.name,
            nonce=request.nonce,
            keyid=request.keyid,
            head_version=head,
            want_version=want,
            merged_sequence=sequences.merged,
            waiting_sequence=sequences.waiting,
            issued_at_ms=self._now_ms(),
            channel=request.channel,
            channel_moved_back_from=channel.moved_back_from if channel else None,
            state_digest=version.state_digest,
            package=expert.kind == "package",
            relay_key=self._relay_key.public if request.relay_key else b"",
        )
        return SyncAnswer(
            member=member,
            request=request,
            statement=dsse.seal(self._key, dsse.SYNC_STATEMENT, statement),
            way=way,
            want_version=want,
            dense_fp32_bytes=4 * parameters if way.versions or way.snapshot else 0,
        )

    def _way(self, expert: Expert, have: int, want: int) -> Way:
        """What leads to a version: steps or a whole state; of a package, its file."""
        if expert.kind == "package":
            return self._packages.way(expert, have, want)
        return self._catch_up.way(expert, have, want)
