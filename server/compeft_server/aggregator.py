"""The aggregator: what happens to a message once it has arrived. It joins admission, store, ledger and expert log; no sockets here.

Every method that takes an envelope follows the fixed order of admission.py. A message that is refused has changed nothing; one
that is answered is durable.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from compeft_core.errors import CompeftError, FormatError
from compeft_proto import envelope as dsse
from compeft_proto import manifest as mf
from compeft_proto.errors import ConflictError, ForbiddenError, UnknownExpertError
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server import admission
from compeft_server.admission import Limits, Situation
from compeft_server.expert_log import ExpertLog
from compeft_server.facts import Expert, Member, Submission, Version
from compeft_server.ledger import Ledger
from compeft_server.rounds import Rounds
from compeft_server.store import ChunkStore


@dataclass(frozen=True, slots=True)
class Upload:
    """An admitted manifest whose chunks may still be missing. `needed` are (reference, bytes already here), in order."""

    member: Member
    message: pb.UpdateManifest | pb.Genesis
    digest: bytes
    envelope: bytes
    refs: tuple[pb.ChunkRef, ...]
    needed: tuple[tuple[pb.ChunkRef, int], ...]


@dataclass(frozen=True, slots=True)
class SyncAnswer:
    """What a client is told: the sealed statement, the sealed versions it lacks, the chunks it may ask for."""

    member: Member
    request: pb.SyncRequest
    statement: Envelope
    versions: tuple[Envelope, ...]
    want_version: int
    chunks: frozenset[bytes]
    dense_fp32_bytes: int


class Aggregator:
    """One aggregator over one store and one ledger. `now_ms` is its clock."""

    def __init__(self, key: SigningKey, store: ChunkStore, ledger: Ledger, limits: Limits, now_ms: Callable[[], int]) -> None:
        self._key, self._store, self._ledger, self._limits, self._now_ms = key, store, ledger, limits, now_ms
        self._log = ExpertLog(key.public, store, ledger)
        self._rounds = Rounds(key, store, ledger, self._log, limits, now_ms)
        self._lock = threading.RLock()

    # Submitting: begin, receive each needed chunk, finish

    def begin(self, envelope: Envelope) -> Upload | Envelope:
        """Admit a sealed UpdateManifest or Genesis by its manifest alone; the answer again if it is in already."""
        verified = dsse.verify(envelope, self._lookup)
        if verified.payload_type == dsse.GENESIS.name:
            return self._begin_genesis(verified, envelope)
        update = dsse.parse(verified, dsse.UPDATE)
        same = admission.admit_update(update, self._situation(update, verified), self._now_ms(), self._limits)
        if same is not None:
            return Envelope.FromString(same.receipt)
        return self._upload(verified, envelope, update, update.chunks)

    def receive(self, upload: Upload, ref: pb.ChunkRef, data: bytes) -> int:
        """The next bytes of a needed chunk; returns how many are here. Errors: FormatError if they are too many."""
        keyid = upload.member.public.keyid
        here = self._store.received(keyid, ref.sha256) + len(data)
        if here > ref.size:
            raise FormatError(f"chunk {ref.sha256.hex()[:16]} is of {ref.size} bytes, {here} were sent")
        self._store.append(keyid, ref.sha256, data)
        if here == ref.size:
            self._store.check(keyid, ref.sha256)
        return here

    def finish(self, upload: Upload) -> Envelope:
        """All chunks are here: check them, record, answer. Errors: as `admission.admit_payload`, and those of `begin` again."""
        with self._lock:
            if isinstance(upload.message, pb.Genesis):
                return self._create(upload.message, upload)
            return self._accept(upload.message, upload)

    # Syncing

    def sync(self, envelope: Envelope) -> SyncAnswer:
        """Answer a sealed SyncRequest. Errors: UnknownExpertError, ForbiddenError, ExpiredError, FormatError."""
        verified = dsse.verify(envelope, self._lookup)
        request = dsse.parse(verified, dsse.SYNC_REQUEST)
        admission.admit_time(request.issued_at_ms, request.issued_at_ms + self._limits.max_age_ms, self._now_ms(), self._limits)
        member = admission.admit_member(self._ledger.member(verified.keyid), request.keyid, "edge", "conductor", "reader")
        expert = self._expert(request.expert)
        with self._lock:
            return self._answer(member, expert, request)

    def stream(self, answer: SyncAnswer, sha256: bytes, offset: int) -> Iterator[bytes]:
        """A chunk of an answer from `offset` on. Errors: ForbiddenError if the answer does not name it."""
        if sha256 not in answer.chunks:
            raise ForbiddenError(f"chunk {sha256.hex()[:16]} belongs to no version of this answer")
        return self._store.stream(sha256, offset)

    # Conducting

    def conduct(self, envelope: Envelope) -> Envelope:
        """Obey a sealed RoundOpening, RoundClosing or QualityReport of a conductor; a sealed statement back."""
        verified = dsse.verify(envelope, self._lookup)
        with self._lock:
            return self._rounds.conduct(verified)

    def _lookup(self, keyid: str) -> PublicKey | None:
        member = self._ledger.member(keyid)
        return None if member is None or member.revoked else member.public

    def _expert(self, name: str) -> Expert:
        found = self._ledger.expert(name)
        if found is None:
            raise UnknownExpertError(f"no expert {name[:40]!a} here; there are: {', '.join(self._ledger.experts()) or 'none'}")
        return found

    def _situation(self, update: pb.UpdateManifest, verified: dsse.Verified) -> Situation:
        member = self._ledger.member(verified.keyid)
        if member is None:
            raise ForbiddenError(f"key {verified.keyid} was removed just now")
        expert, found = self._ledger.expert(update.expert), self._ledger.round(update.expert, update.run, update.round)
        in_round = self._ledger.submissions(update.expert, update.run, update.round)
        base = self._ledger.versions(update.expert, found.base_version - 1, found.base_version) if found else []
        return Situation(
            member=member,
            expert=expert,
            round=found,
            base_state_digest=base[0].state_digest if base else b"",
            same=self._ledger.submission(verified.digest),
            other=next((s for s in in_round if s.keyid == verified.keyid), None),
            accepted_sequence=self._ledger.sequences(update.expert, verified.keyid).accepted,
        )

    def _upload(
        self,
        verified: dsse.Verified,
        envelope: Envelope,
        message: pb.UpdateManifest | pb.Genesis,
        refs: Sequence[pb.ChunkRef],
    ) -> Upload:
        member = self._ledger.member(verified.keyid)
        if member is None:
            raise ForbiddenError(f"key {verified.keyid} was removed just now")
        once = {ref.sha256: ref for ref in refs if not self._store.has(ref.sha256)}
        needed = tuple((ref, self._store.received(verified.keyid, ref.sha256)) for ref in once.values())
        return Upload(member, message, verified.digest, envelope.SerializeToString(), tuple(refs), needed)

    @contextmanager
    def _chunks(self, upload: Upload) -> Iterator[bytes]:
        """The payload of an upload, to be admitted inside: its chunks are in the store after success, dropped after an error."""
        keyid = upload.member.public.keyid
        try:
            yield b"".join(mf.check_chunk(ref, self._store.peek(keyid, ref.sha256)) for ref in upload.refs)
        except CompeftError:
            for ref in upload.refs:
                self._store.drop(keyid, ref.sha256)
            raise
        for ref in upload.refs:
            self._store.commit(keyid, ref.sha256)

    def _begin_genesis(self, verified: dsse.Verified, envelope: Envelope) -> Upload:
        genesis = dsse.parse(verified, dsse.GENESIS)
        admission.admit_time(genesis.issued_at_ms, genesis.issued_at_ms + self._limits.max_age_ms, self._now_ms(), self._limits)
        admission.admit_member(self._ledger.member(verified.keyid), genesis.keyid, "conductor")
        admission.admit_genesis(genesis, self._limits)
        if self._ledger.expert(genesis.expert) is not None:
            raise ConflictError(f"expert {genesis.expert!r} exists already: choose another name or continue it")
        return self._upload(verified, envelope, genesis, genesis.snapshot.chunks)

    def _create(self, genesis: pb.Genesis, upload: Upload) -> Envelope:
        layout = mf.layout_from_proto(genesis.layout)
        with self._chunks(upload) as blob:
            mf.initial_state(genesis, layout, blob)
        now = self._now_ms()
        manifest = pb.VersionManifest(
            expert=genesis.expert,
            state_digest=genesis.state_digest,
            base_model_digest=genesis.base_model_digest,
            layout_digest=layout.digest,
            adapter_config_digest=genesis.adapter_config_digest,
            chunks=upload.refs,
            issued_at_ms=now,
            genesis=genesis,
        )
        sealed = dsse.seal(self._key, dsse.VERSION, manifest)
        expert = Expert(genesis.expert, genesis.base_model_digest, genesis.adapter_config_digest, layout)
        payload_bytes = sum(ref.size for ref in upload.refs)
        first = Version(genesis.expert, 0, sealed.SerializeToString(), genesis.state_digest, (), "", 0, payload_bytes, 0.0, now)
        self._ledger.create(expert, first)
        return sealed

    def _accept(self, update: pb.UpdateManifest, upload: Upload) -> Envelope:
        again = self.begin(Envelope.FromString(upload.envelope))
        if isinstance(again, Envelope):
            return again
        with self._chunks(upload) as blob:
            admission.admit_payload(update, blob, self._expert(update.expert))
        now = self._now_ms()
        receipt = pb.Receipt(
            update_digest=upload.digest,
            expert=update.expert,
            run=update.run,
            round=update.round,
            keyid=update.keyid,
            sequence=update.sequence,
            payload_bytes=len(blob),
            accepted_at_ms=now,
        )
        sealed = dsse.seal(self._key, dsse.RECEIPT, receipt)
        self._ledger.accept(
            Submission(
                update_digest=upload.digest,
                expert=update.expert,
                run=update.run,
                round=update.round,
                keyid=update.keyid,
                sequence=update.sequence,
                num_examples=update.num_examples,
                envelope=upload.envelope,
                receipt=sealed.SerializeToString(),
                accepted_at_ms=now,
            )
        )
        return sealed

    def _answer(self, member: Member, expert: Expert, request: pb.SyncRequest) -> SyncAnswer:
        head = self._ledger.head(expert.name)
        want = request.want_version if request.HasField("want_version") else head
        have = request.have_version if request.HasField("have_version") else -1
        if want > head or have > want:
            raise UnknownExpertError(f"{expert.name} has versions 0 to {head}; asked was for {have + 1} to {want}")
        versions = self._ledger.versions(expert.name, have, want)
        sequences = self._ledger.sequences(expert.name, request.keyid)
        statement = pb.SyncStatement(
            expert=expert.name,
            nonce=request.nonce,
            keyid=request.keyid,
            head_version=head,
            want_version=want,
            merged_sequence=sequences.merged,
            waiting_sequence=sequences.waiting,
            issued_at_ms=self._now_ms(),
        )
        chunks = frozenset(ref.sha256 for v in versions for ref in self._log.manifest(v).chunks)
        return SyncAnswer(
            member=member,
            request=request,
            statement=dsse.seal(self._key, dsse.SYNC_STATEMENT, statement),
            versions=tuple(Envelope.FromString(v.envelope) for v in versions),
            want_version=want,
            chunks=chunks,
            dense_fp32_bytes=4 * expert.layout.size if versions else 0,
        )
