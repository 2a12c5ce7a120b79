"""The aggregator: what happens to a message once it has arrived. It joins admission, store, ledger and expert log; no sockets here.

Every method that takes an envelope follows the fixed order of admission.py. A message that is refused has changed nothing; one
that is answered is durable.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from compeft_core.errors import CompeftError, FormatError
from compeft_proto import envelope as dsse
from compeft_proto import manifest as mf
from compeft_proto.base_model import NO_BASE_MODEL
from compeft_proto.errors import ConflictError, ForbiddenError, UnknownExpertError, UnknownKeyError
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server import admission
from compeft_server.access import Access
from compeft_server.admission import Limits, Situation
from compeft_server.catch_up import CatchUp, Way
from compeft_server.channels import Channel, channel_of
from compeft_server.expert_log import ExpertLog
from compeft_server.facts import Expert, Member, Round, Submission, Version
from compeft_server.ledger import Ledger
from compeft_server.packages import Packages
from compeft_server.rounds import Rounds
from compeft_server.store import ChunkStore

Message = pb.UpdateManifest | pb.Genesis | pb.Package
OFFERS: dict[str, dsse.PayloadType[Any]] = {kind.name: kind for kind in (dsse.UPDATE, dsse.GENESIS, dsse.PACKAGE)}
"""What may be submitted, by payload type."""


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
    """An admitted offer whose chunks may still be missing. `needed` are (reference, bytes already here), in order."""

    offer: Offer
    needed: tuple[tuple[pb.ChunkRef, int], ...]


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
        self._rounds = Rounds(key, store, ledger, self._log, self._access, limits, now_ms)
        self._catch_up = CatchUp(key, store, ledger, self._log)
        self._packages = Packages(key, ledger, self._log, self._access, limits, now_ms)
        self._settled: dict[tuple[str, str], int] = {}
        """By expert and member: numbers up to this one were spoken for. In memory, as are the calls that could still bring one of them."""
        self._lock = threading.RLock()

    # Submitting: open, admit, receive each needed chunk, finish

    def open(self, envelope: Envelope) -> Offer:
        """Steps 1 to 4 for a sealed UpdateManifest, Genesis or Package."""
        verified = dsse.verify(envelope, self._lookup)
        kind = OFFERS.get(verified.payload_type, dsse.UPDATE)
        message: Message = dsse.parse(verified, kind)
        return Offer(self._member(verified), message, verified.digest, envelope.SerializeToString())

    def admit(self, offer: Offer) -> Upload | Envelope:
        """Steps 5 and 6, by the manifest alone; the answer again if this very update is in already."""
        if isinstance(offer.message, pb.Genesis):
            self._admit_genesis(offer.message, offer.member)
        elif isinstance(offer.message, pb.Package):
            published = self._packages.admit(offer.message, offer.member)
            if published is not None:
                return published
        else:
            same = admission.admit_update(offer.message, self._situation(offer.message, offer), self._now_ms(), self._limits)
            if same is not None:
                return Envelope.FromString(same.receipt)
        sender = offer.member.public.keyid
        once = {ref.sha256: ref for ref in offer.refs if not self._store.has(ref.sha256)}
        return Upload(offer, tuple((ref, self._store.received(sender, ref.sha256)) for ref in once.values()))

    def receive(self, upload: Upload, ref: pb.ChunkRef, data: bytes) -> int:
        """The next bytes of a needed chunk; returns how many are here. Errors: FormatError if they are too many."""
        keyid = upload.offer.member.public.keyid
        here = self._store.received(keyid, ref.sha256) + len(data)
        if here > ref.size:
            raise FormatError(f"chunk {ref.sha256.hex()[:16]} is of {ref.size} bytes, {here} were sent")
        self._store.append(keyid, ref.sha256, data)
        if here == ref.size:
            self._store.check(keyid, ref.sha256)
        return here

    def finish(self, upload: Upload) -> Envelope:
        """All chunks are here: admit once more, then steps 7 to 10. Errors: those of `admit`, and `admission.admit_payload`."""
        offer = upload.offer
        if self._lookup(offer.member.public.keyid) is None:
            raise UnknownKeyError(f"key {offer.member.public.keyid} was revoked just now")
        with self._lock:
            again = self.admit(offer)
            if isinstance(again, Envelope):
                return again
            if isinstance(offer.message, pb.Genesis):
                return self._create(offer.message, offer)
            if isinstance(offer.message, pb.Package):
                with self._chunks(offer) as blob:
                    manifest = self._packages.check(offer.message, blob)
                return self._packages.publish(offer.message, offer.member, offer.envelope, manifest)
            return self._accept(offer.message, offer)

    # Syncing

    def sync(self, envelope: Envelope) -> SyncAnswer:
        """Answer a sealed SyncRequest. Errors: UnknownExpertError, ForbiddenError, ExpiredError, FormatError."""
        verified = dsse.verify(envelope, self._lookup)
        request = dsse.parse(verified, dsse.SYNC_REQUEST)
        admission.admit_time(request.issued_at_ms, request.issued_at_ms + self._limits.max_age_ms, self._now_ms(), self._limits)
        member = admission.admit_member(self._member(verified), request.keyid, "edge", "conductor", "reader")
        expert = self._access.expert(member, request.expert)
        with self._lock:
            return self._answer(member, expert, request)

    def stream(self, answer: SyncAnswer, sha256: bytes, offset: int) -> Iterator[bytes]:
        """A chunk of an answer from `offset` on. Errors: ForbiddenError if the answer does not name it."""
        if sha256 not in answer.way.chunks:
            raise ForbiddenError(f"chunk {sha256.hex()[:16]} belongs to no version of this answer")
        return self._store.stream(sha256, offset)

    # Conducting

    def conduct(self, envelope: Envelope) -> Envelope:
        """Obey a sealed RoundOpening, RoundClosing or QualityReport of a conductor; a sealed statement back."""
        verified = dsse.verify(envelope, self._lookup)
        with self._lock:
            return self._rounds.conduct(verified, self._member(verified))

    def _lookup(self, keyid: str) -> PublicKey | None:
        member = self._ledger.member(keyid)
        return None if member is None or member.revoked else member.public

    def _member(self, verified: dsse.Verified) -> Member:
        member = self._ledger.member(verified.keyid)
        if member is None:
            raise ForbiddenError(f"key {verified.keyid} was removed just now")
        return member

    def _situation(self, update: pb.UpdateManifest, offer: Offer) -> Situation:
        keyid = offer.member.public.keyid
        expert, found = self._ledger.expert(update.expert), self._ledger.round(update.expert, update.run, update.round)
        same, joins, mine = self._ledger.submission(offer.digest), self._joined(found), self._ledger.keyids(keyid)
        if same is not None:
            joins = self._ledger.round(same.expert, same.run, same.round)
        in_round = self._ledger.submissions(joins.expert, joins.run, joins.round) if joins else []
        settled = self._settled.get((update.expert, offer.member.name), 0)
        base = self._ledger.versions(update.expert, found.base_version - 1, found.base_version) if found else []
        return Situation(
            member=offer.member,
            expert=expert,
            round=found,
            joins=joins,
            base_state_digest=base[0].state_digest if base else b"",
            same=same,
            other=next((s for s in in_round if s.keyid in mine), None),
            accepted_sequence=max(self._ledger.sequences(update.expert, keyid).accepted, settled),
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

    @contextmanager
    def _chunks(self, offer: Offer) -> Iterator[bytes]:
        """The payload of an offer, to be admitted inside: its chunks are in the store after success, dropped after an error."""
        keyid = offer.member.public.keyid
        try:
            yield b"".join(mf.check_chunk(ref, self._store.peek(keyid, ref.sha256)) for ref in offer.refs)
        except CompeftError:
            for ref in offer.refs:
                self._store.drop(keyid, ref.sha256)
            raise
        for ref in offer.refs:
            self._store.commit(keyid, ref.sha256)

    def _admit_genesis(self, genesis: pb.Genesis, member: Member) -> None:
        admission.admit_time(genesis.issued_at_ms, genesis.issued_at_ms + self._limits.max_age_ms, self._now_ms(), self._limits)
        admission.admit_member(member, genesis.keyid, "conductor")
        admission.admit_genesis(genesis, self._limits)
        self._access.require_name(member, genesis.expert)
        if self._ledger.expert(genesis.expert) is not None:
            raise ConflictError(f"expert {genesis.expert!r} exists already: choose another name or continue it")

    def _create(self, genesis: pb.Genesis, offer: Offer) -> Envelope:
        layout = mf.layout_from_proto(genesis.layout)
        with self._chunks(offer) as blob:
            mf.initial_state(genesis, layout, blob)
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

    def _accept(self, update: pb.UpdateManifest, offer: Offer) -> Envelope:
        with self._chunks(offer) as blob:
            admission.admit_payload(update, blob, self._log.expert(update.expert))
        now = self._now_ms()
        joins = self._joined(self._ledger.round(update.expert, update.run, update.round))
        number = joins.round if joins else update.round
        receipt = pb.Receipt(
            update_digest=offer.digest,
            expert=update.expert,
            run=update.run,
            round=number,
            keyid=update.keyid,
            sequence=update.sequence,
            payload_bytes=len(blob),
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
                num_examples=update.num_examples,
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
        key = (expert.name, member.name)
        self._settled[key] = max(self._settled.get(key, 0), request.sequence)
        sequences = self._ledger.sequences(expert.name, request.keyid)
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
