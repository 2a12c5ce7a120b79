"""The aggregator: what happens to a message once it has arrived. It joins admission, store, ledger and expert log; no sockets here.

Every method that takes an envelope follows the fixed order of admission.py. A message that is refused has changed nothing; one
that is answered is durable.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic

from compeft_core.errors import CompeftError, FormatError
from compeft_proto import envelope as dsse
from compeft_proto.errors import ForbiddenError, RewoundLogError, UnknownExpertError, UnknownKeyError
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.log_head import check_length
from compeft_proto.sealed_box import open_box, relay_key_of
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.aggregation.access import Access
from compeft_server.aggregation.catch_up import CatchUp, Way
from compeft_server.aggregation.expert_log import ExpertLog
from compeft_server.aggregation.genesis_kind import GenesisKind
from compeft_server.aggregation.locks import KeyedLocks, ReadWriteLock
from compeft_server.aggregation.log_heads import LogHeads
from compeft_server.aggregation.message_kind import Checked, Dependencies, M, MessageKind, Offer
from compeft_server.aggregation.package_kind import PackageKind, package_way
from compeft_server.aggregation.rounds import Rounds
from compeft_server.aggregation.update_kind import UpdateKind
from compeft_server.chunks.chunked_payload import Chunked
from compeft_server.chunks.disk_space import UploadQuota
from compeft_server.chunks.store import ChunkStore
from compeft_server.domain import admission
from compeft_server.domain.channels import Channel, channel_of
from compeft_server.domain.limits import Limits
from compeft_server.domain.pools import pool_use
from compeft_server.domain.records import Expert, Member
from compeft_server.ledger.ledger import Ledger

KINDS: tuple[type[MessageKind[Any, Any]], ...] = (UpdateKind, GenesisKind, PackageKind)
"""What may be submitted. A message of another payload type is refused as an update of the wrong type."""
SYNCING = 8
"""Chunks that are made durable at the same time: a disk takes many syncs side by side in the time of one."""
CHECKERS = {False: 2, True: 1}
"""Payloads that are decoded at the same time, above `admission.LARGE_BYTES` and below: each needs a few times its size in memory."""


Rate = Callable[[str], None]
"""Told the keyid of each message whose signature holds; raises ThrottledError if there are too many."""


def _any_rate(keyid: str) -> None:
    """Let every call in."""


@dataclass(frozen=True, slots=True)
class Upload(Generic[M, Checked]):
    """An admitted offer whose chunks may still be missing. `needed` are (reference, bytes already here), in order; `checked` are those
    that have arrived since and are what their digest says.
    """

    offer: Offer[M, Checked]
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
    """One aggregator over one store and one ledger. `now_ms` is its clock, `earlier` are public keys that it had before, `heads` sign the
    heads of its audit log.
    """

    def __init__(
        self,
        key: SigningKey,
        store: ChunkStore,
        ledger: Ledger,
        limits: Limits,
        now_ms: Callable[[], int],
        earlier: Sequence[PublicKey] = (),
        heads: LogHeads | None = None,
    ) -> None:
        self.heads = heads or LogHeads(key, ledger, earlier)
        self._key, self._store, self._ledger, self._limits, self._now_ms = key, store, ledger, limits, now_ms
        self._log = ExpertLog(key.public, store, ledger, earlier)
        self._access = Access(ledger, self._log, now_ms)
        self._pool = ThreadPoolExecutor(SYNCING)
        parts = Dependencies(key, store, ledger, self._log, self._access, limits, now_ms)
        self._kinds = {kind.payload_type.name: kind(parts) for kind in KINDS}
        self._rounds = Rounds(parts, self._pool, self.heads)
        self._catch_up = CatchUp(key, store, ledger, self._log)
        self._relay_key = relay_key_of(key)
        self._gate, self._checks, self._members = ReadWriteLock(), KeyedLocks(), KeyedLocks()
        self._checking = {large: threading.Semaphore(count) for large, count in CHECKERS.items()}
        self._room = UploadQuota(store.partial, limits)

    # Submitting: open, admit, receive each needed chunk, finish

    def open(self, envelope: Envelope, rate: Rate = _any_rate) -> Offer[Any, Any]:
        """Steps 1 to 4 for a sealed UpdateManifest, Genesis or Package. Errors: also those of `rate`, before anything is parsed."""
        verified, member = self._verified(envelope, rate)
        kind = self._kinds.get(verified.payload_type) or self._kinds[dsse.UPDATE.name]
        message = dsse.parse(verified, kind.payload_type)
        return Offer(kind, member, message, verified.digest, envelope.SerializeToString())

    def unbox(self, box: bytes) -> xp.SubmitRequest:
        """What a client closed to the relay key of a statement. Errors: FormatError."""
        return open_box(self._relay_key, xp.SubmitRequest, box)

    def admit(self, offer: Offer[M, Checked]) -> Upload[M, Checked] | Envelope:
        """Steps 5 and 6, by the manifest alone; the answer again if this very update is in already."""
        known = offer.kind.admit(offer)
        if isinstance(known, Envelope):
            return known
        sender, own = offer.member.public.keyid, offer.kind.readable_chunks(offer)
        once = {ref.sha256: ref for ref in offer.refs if ref.sha256 not in own or not self._store.has(ref.sha256)}
        return Upload(offer, tuple((ref, self._store.received(sender, ref.sha256)) for ref in once.values()))

    def make_room(self, keyid: str, missing_bytes: int) -> None:
        """Whether this number of bytes may come from this client now. Errors: StorageFullError."""
        self._room.check(keyid, missing_bytes)

    def receive(self, upload: Upload[M, Checked], ref: pb.ChunkRef, data: bytes) -> int:
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

    def finish(self, upload: Upload[M, Checked]) -> Envelope:
        """All chunks are here: step 7; then, with no round opened or closed meanwhile, steps 5 and 6 once more and steps 8 to 10.

        Errors: those of `admit`, and `admission.admit_payload`.
        """
        offer, keyid = upload.offer, upload.offer.member.public.keyid
        member = self._ledger.member(keyid)
        if member is None or member.revoked:
            raise UnknownKeyError(f"key {keyid} was revoked just now")
        with self._checks.take(keyid):
            checked = self._check_chunks(offer, upload.checked)
            if offer.kind.exclusive:
                with self._gate.alone():
                    return self._record(offer, checked)
            with self._gate.shared(), self._members.take(member.name):
                return self._record(offer, checked)

    def _record(self, offer: Offer[M, Checked], checked: Checked) -> Envelope:
        """Steps 5 and 6 once more, and 8 to 10. `checked` is what step 7 returned."""
        record = offer.kind.admit(offer)
        if isinstance(record, Envelope):
            return record
        keyid = offer.member.public.keyid
        list(self._pool.map(lambda ref: self._store.commit(keyid, ref.sha256), offer.refs))
        return record(checked)

    # Syncing

    def sync(self, envelope: Envelope, rate: Rate = _any_rate) -> SyncAnswer:
        """Answer a sealed SyncRequest. Errors: UnknownExpertError, ForbiddenError, ExpiredError, FormatError, RewoundLogError."""
        verified, member = self._verified(envelope, rate)
        request = dsse.parse(verified, dsse.SYNC_REQUEST)
        admission.admit_time(request.issued_at_ms, request.issued_at_ms + self._limits.max_age_ms, self._now_ms(), self._limits)
        member = admission.admit_member(member, request.keyid, "edge", "conductor", "reader")
        check_length(request.head_size, self._ledger.log_size())
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

    def observe(self, envelope: Envelope, rate: Rate = _any_rate) -> Envelope:
        """Keep a sealed PoolReport of an edge client or reader; a sealed Recorded back.

        Errors: ExpiredError, ForbiddenError, PayloadTypeError; FormatError, LimitError, NotFiniteError for what it says.
        """
        verified, member = self._verified(envelope, rate)
        report = dsse.parse(verified, dsse.POOL_REPORT)
        admission.admit_time(report.issued_at_ms, report.issued_at_ms + self._limits.max_age_ms, self._now_ms(), self._limits)
        admission.admit_member(member, report.keyid, "edge", "reader")
        self._ledger.pools.record(pool_use(report, report.keyid, self._now_ms()))
        return dsse.seal(self._key, dsse.RECORDED, pb.Recorded(nonce=report.nonce))

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

    def _check_chunks(self, offer: Offer[M, Checked], arrived: set[bytes]) -> Checked:
        """Step 7; what it returned. `arrived` are chunks already checked. What was sent is dropped if it is not what it should be."""
        keyid = offer.member.public.keyid
        try:
            with self._checking[sum(ref.size for ref in offer.refs) > admission.LARGE_BYTES]:
                return offer.kind.check(offer, Chunked(offer.refs, lambda sha256: self._store.peek(keyid, sha256), arrived))
        except CompeftError:
            for ref in offer.refs:
                self._store.drop(keyid, ref.sha256)
            raise

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
        if have > head:
            raise RewoundLogError(
                f"{expert.name} has versions 0 to {head} here, this client has version {have}: the aggregator was restored from an "
                "older backup; ask its operator"
            )
        if want > head or (have > want and channel is None):
            raise UnknownExpertError(f"{expert.name} has versions 0 to {head}; asked was for {have + 1} to {want}")
        way = Way() if request.statement_only else self._way(expert, have, want)
        if way.versions or way.snapshot:
            self._ledger.terms.record_fetch(expert.name, want, request.keyid, decision.reason, self._now_ms())
        sequences = self._ledger.sequences(expert.name, request.keyid)
        if request.sequence > sequences.accepted:
            self._ledger.settle(expert.name, request.keyid, request.sequence)
        version = self._log.version(expert.name, want)
        parameters = self._log.manifest(version).publication.parameters if expert.kind == "package" else expert.layout.size
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
            head=self.heads.since(request.head_size),
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
            return package_way(self._log, expert, have, want)
        return self._catch_up.way(expert, have, want)
