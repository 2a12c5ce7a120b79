"""EdgeClient: sync an expert from an aggregator, submit a task vector to it. No Flower, no torch.

    from compeft_client import EdgeClient, Trained, edge_of

    with EdgeClient(edge_of({"site": "/var/lib/compeft-edge"})) as client:
        synced = client.sync("sentiment")                           # checked: signature, place in the log, digest of the state
        tuned = train(synced.vector)                                # yours: float32, flat, in the order of synced.layout
        client.submit(task, Trained(tuned - synced.vector, 300, {}))  # the round's task, from its conductor; 300 examples

Nothing that arrives is used before its signature, its place in the log and its state digest are checked. A client never goes
back to an older version than the one it has unless told to.
"""

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from compeft_client.exchange.connections import Carrier, Letters, connected
from compeft_client.exchange.quality_floor import Floor
from compeft_client.exchange.remembered_head import RememberedHead
from compeft_client.exchange.state_directory import Memory, Pending, StateDirectory, settled
from compeft_client.exchange.update_coding import CodedUpdate, UpdateLimits, coded_update
from compeft_client.identity.edge_config import Edge
from compeft_client.workers import WORKERS
from compeft_core import Compression, Encoded, Layout, State, Vector
from compeft_core.errors import InputError
from compeft_core.parallel import workers_for
from compeft_proto import answer_checks
from compeft_proto import envelope as dsse
from compeft_proto.base_model import base_model_to_proto
from compeft_proto.chunk_refs import refs_of
from compeft_proto.clock import now_ms
from compeft_proto.convert import coding_of, layout_from_proto, metrics_to_proto
from compeft_proto.errors import RewoundLogError, WrongBaseError
from compeft_proto.log_head import HeadMemory, follow_head, size_known
from compeft_proto.privacy_terms import SALT_BYTES
from compeft_proto.round_task import Origin, RoundTask
from compeft_proto.sync_answer import Answer, Progress, apply_steps, fetch, no_progress, read_answer
from compeft_proto.trusted_keys import TrustedKeys
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope

LIFETIME_MS = 60 * 60 * 1000
"""How long a sealed update may be under way."""

NO_ORIGIN = Origin()


@dataclass(frozen=True, slots=True)
class Synced:
    """An expert at one version. `vector` is float32 of shape (layout.size,), the state that the version's digest names;
    `adapter_config` is canonical JSON, empty if its publisher did not say; `origin` is what the expert is bound to.
    """

    expert: str
    version: int
    layout: Layout
    vector: Vector
    adapter_config: bytes
    origin: Origin = NO_ORIGIN


@dataclass(frozen=True, slots=True)
class Trained:
    """What local training produced: the task vector (tuned minus synced, float32 of shape (layout.size,)), its weight in the merge
    (finite, 0 or more; by default the number of examples), metrics by name, and the SHA-256 of the base
    model and adapter configuration it was trained with.
    """

    task_vector: Vector
    num_examples: float
    metrics: Mapping[str, float]
    origin: Origin = field(default_factory=Origin)


class EdgeClient:
    """One edge client of one aggregator; a context manager, because it holds a connection. With `letters` it has none, and others carry
    what it asks and answers; all checks are the same.
    """

    def __init__(self, edge: Edge, letters: Letters | None = None) -> None:
        self._edge = edge
        self._heads: HeadMemory
        if letters is None:
            connection = connected(edge)
            self._carrier: Carrier = connection
            self._trusted, self._heads = connection.trusted, connection.heads
        else:
            self._carrier = letters
            self._trusted = TrustedKeys((edge.aggregator, *edge.older), letters.handovers, edge.learned)
            self._heads = RememberedHead(edge.state)
        self._relay_key = b""

    def __enter__(self) -> "EdgeClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._carrier.close()

    def sync(
        self,
        expert: str,
        version: int | None = None,
        run: str = "",
        round_number: int = 0,
        *,
        channel: str = "",
        go_back: bool = False,
        origin: Origin = NO_ORIGIN,
        progress: Progress = no_progress,
    ) -> Synced:
        """Bring the local copy of `expert` to `version`, or to where `channel` points (to the newest by default), and settle the
        pending update.

        `run` and `round_number` say on whose behalf, for the ledger. `go_back` allows an older version than the one that is here:
        after a rolled back channel, say. `origin` is what this client trains or serves with: another base
        model than the expert's is a WrongBaseError. Errors: UnreachableError; UnknownExpertError; ForbiddenError; InputError for a version
        and a channel at once; SignatureError, WrongBaseError, ReplayError, FormatError or ChunkMismatchError if the answer cannot
        be trusted. After an error the local copy is what it was.
        """
        if channel and version is not None:
            raise InputError(f"{expert}: asked for version {version} and for channel {channel}: name one of them")
        directory = self._memory_of(expert)
        with directory.lock():
            memory = before = directory.load()
            answer_checks.check_goal(expert, memory.version, version, go_back)
            if version is not None and version < memory.version:
                memory = _rewound(memory)
            request = self._request(expert, memory, run, round_number)
            if version is not None:
                request.want_version = version
            request.channel = channel
            try:
                answer, payloads = self._answered(directory, request, memory, progress)
            except RewoundLogError:
                if not go_back or memory.version < 0:
                    raise
                memory = _rewound(memory)
                answer, payloads = self._answered(directory, request, memory, progress)
            statement = answer.statement
            answer_checks.check_channel(statement, memory.version, go_back)
            if statement.want_version < memory.version:
                memory = _rewound(memory)
                answer, payloads = self._answered(directory, request, memory, progress)
            genesis = answer_checks.genesis_of(answer.steps, expert) if memory.version < 0 else _genesis(directory, memory)
            answer_checks.check_base(origin, genesis)
            memory, synced = _follow(directory, memory, answer, payloads)
            memory = settled(memory, statement.merged_sequence, statement.waiting_sequence)
            if memory != before:
                directory.save(memory)
        return synced

    def _answered(
        self, directory: StateDirectory, request: pb.SyncRequest, memory: Memory, progress: Progress
    ) -> tuple[Answer, list[bytes]]:
        """The signed answer to `request` from what `memory` has, and the payloads of the steps that are needed of it."""
        _place(request, memory)
        self._carrier.date(request)

        def attempt() -> tuple[Answer, list[bytes]]:
            with self._carrier.ask(request) as dialogue:
                answer = read_answer(dialogue, self._trusted.newest, self._trusted.any)
                answer_checks.check_statement(answer.statement, request, memory.version)
                follow_head(self._heads, request.head_size, answer.statement.head, self._trusted.keys)
                answer_checks.check_steps(answer.steps, answer.statement)
                return answer, fetch(dialogue, directory, answer.needed, progress)

        answer, payloads = self._carrier.persist(lambda: self._trusted.with_rotation(attempt))
        self._relay_key = answer.statement.relay_key
        return answer, payloads

    def next_request(self, expert: str, run: str, round_number: int) -> pb.SyncRequest:
        """What a sync to the newest version would ask now, for others to carry."""
        directory = self._memory_of(expert)
        with directory.lock():
            return self._request(expert, directory.load(), run, round_number)

    def _request(self, expert: str, memory: Memory, run: str, round_number: int) -> pb.SyncRequest:
        request = pb.SyncRequest(expert=expert, keyid=self._edge.key.keyid, run=run, round=round_number, sequence=memory.sequence)
        request.head_size = size_known(self._heads, self._trusted.keys)
        return _place(request, memory)

    def check_ready(self, task: RoundTask) -> None:
        """Raise now, before anybody trains, what `submit` would raise of this client's memory. Errors: WrongBaseError, ConflictError."""
        directory = self._memory_of(task.expert)
        with directory.lock():
            memory = directory.load()
            answer_checks.check_ready(
                task.expert, memory.version, task.version, memory.pending.sequence if memory.pending else None
            )

    def submit(self, task: RoundTask, trained: Trained, floor: Floor | None = None) -> pb.Receipt | None:
        """Compress the task vector plus the residual, seal it and send it for one round; the aggregator's receipt, or None where others
        carry it: then the next `sync` says what became of it.

        With a `floor`, the task's density is the most: the update is compressed as far as the floor allows. What compression leaves
        behind is kept for the next round, and so is all that earlier rounds left of tensors that rest in this one.

        Errors: WrongBaseError if another version was synced last; ConflictError while an earlier update waits for its round to close;
        NotFiniteError; InputError if training changed a tensor that rests; the aggregator's refusal; UnreachableError. After an error of
        the exchange the update stays pending, and the next `sync` settles it.
        """
        directory = self._memory_of(task.expert)
        with directory.lock():
            memory = directory.load()
            answer_checks.check_ready(
                task.expert, memory.version, task.version, memory.pending.sequence if memory.pending else None
            )
            layout = layout_from_proto(_genesis(directory, memory).layout)
            vectors = trained.task_vector, directory.residual(memory, layout), _synced(directory, memory, layout, task, floor)
            limits = UpdateLimits(self._edge.max_update_bytes, self._edge.max_upload_s, memory.upload_bytes_per_s)
            made = coded_update(layout, task, vectors, limits, workers_for(layout.size, WORKERS), floor)
            memory, sealed = self._keep_pending(directory, memory, layout, task, trained, made)
            started = time.monotonic()
            receipt = self._send(sealed, made.encoded.blob)
            if receipt is not None:
                seconds = time.monotonic() - started
                directory.save(replace(memory, upload_bytes_per_s=len(made.encoded.blob) / seconds))
            return receipt

    def _keep_pending(
        self, directory: StateDirectory, memory: Memory, layout: Layout, task: RoundTask, trained: Trained, made: CodedUpdate
    ) -> tuple[Memory, Envelope]:
        """Seal the update and write it durably as pending, before a byte of it is sent; the memory that names it, and the envelope."""
        update = self._update(task, trained, made.encoded, layout, made.compression)
        if task.privacy is not None:
            _hide(update, made.within_clip)
        update.sequence = memory.sequence + 1
        update.base_state_digest = bytes.fromhex(memory.synced)
        sealed = dsse.seal(self._edge.key, dsse.UPDATE, update)
        pending = Pending(
            sequence=update.sequence,
            envelope=directory.write(sealed.SerializeToString()),
            payload=directory.write(made.encoded.blob),
            target=directory.write_vector(made.target),
            carried=directory.write(made.encoded.rice),
        )
        memory = replace(memory, sequence=pending.sequence, pending=pending)
        directory.save(memory)
        return memory, sealed

    def resume(self, expert: str) -> pb.Receipt | None:
        """Send an update again that an earlier process left pending; its receipt, or None without one. Errors: as `submit`."""
        directory = self._memory_of(expert)
        with directory.lock():
            pending = directory.load().pending
            if pending is None:
                return None
            return self._send(Envelope.FromString(directory.read(pending.envelope)), directory.read(pending.payload))

    def _send(self, sealed: Envelope, payload: bytes) -> pb.Receipt | None:
        """Send a sealed update; return the aggregator's checked receipt, or None where a relay will bring it later."""
        answer = self._carrier.hand_in(sealed, payload, self._relay_key)
        if answer is None:
            return None
        receipt = self._trusted.with_rotation(lambda: dsse.open_envelope(answer, self._trusted.any, dsse.RECEIPT))
        answer_checks.check_receipt(receipt, hashlib.sha256(sealed.payload).digest())
        return receipt

    def _memory_of(self, expert: str) -> StateDirectory:
        return StateDirectory.of(self._edge.state, expert)

    def _update(
        self, task: RoundTask, trained: Trained, encoded: Encoded, layout: Layout, compression: Compression
    ) -> pb.UpdateManifest:
        now = now_ms()
        return pb.UpdateManifest(
            expert=task.expert,
            base_version=task.version,
            run=task.run,
            round=task.round,
            round_nonce=task.nonce,
            keyid=self._edge.key.keyid,
            base_model_digest=trained.origin.base_model_digest,
            base_model=base_model_to_proto(trained.origin),
            layout_digest=layout.digest,
            adapter_config_digest=trained.origin.adapter_config_digest,
            coding=coding_of(encoded, compression),
            weight=trained.num_examples,
            weighted_by=task.weighted_by,
            metrics=metrics_to_proto(trained.metrics.items()),
            issued_at_ms=now,
            expires_at_ms=now + LIFETIME_MS,
            chunks=refs_of(encoded.blob),
        )


def _hide(update: pb.UpdateManifest, within_clip: bool) -> None:
    """Leave out of a private round's manifest what noise does not cover, and salt it: its digest is published."""
    update.weight, update.salt, update.within_clip = 1.0, secrets.token_bytes(SALT_BYTES), within_clip
    del update.metrics[:]


def _origin_of(genesis: pb.Genesis) -> Origin:
    said = genesis.base_model
    digests = said.tokenizer_digest, said.chat_template_digest
    return Origin(genesis.base_model_digest, genesis.adapter_config, said.id, said.revision, *digests)


def _genesis(directory: StateDirectory, memory: Memory) -> pb.Genesis:
    return pb.Genesis.FromString(directory.read(memory.genesis))


def _place(request: pb.SyncRequest, memory: Memory) -> pb.SyncRequest:
    """The request, from the version that `memory` has."""
    request.ClearField("have_version")
    if memory.version >= 0:
        request.have_version = memory.version
    return request


def _rewound(memory: Memory) -> Memory:
    """A memory without a synced state, for a log that is followed from its start. Residual and pending update stay."""
    return replace(memory, version=-1, genesis="", synced="")


def _follow(directory: StateDirectory, memory: Memory, answer: Answer, payloads: Sequence[bytes]) -> tuple[Memory, Synced]:
    """Apply the steps of the answer, checking each against its signed digest. The memory that names the result is not saved yet."""
    statement = answer.statement
    if memory.version < 0:
        memory = replace(
            memory, genesis=directory.write(answer_checks.genesis_of(answer.steps, statement.expert).SerializeToString())
        )
    genesis = _genesis(directory, memory)
    layout = layout_from_proto(genesis.layout)
    state = _led(directory, memory, answer, payloads, genesis, layout)
    if statement.want_version != memory.version:
        memory = replace(memory, version=statement.want_version, synced=directory.write_state(state))
    return memory, Synced(statement.expert, memory.version, layout, state.vector, genesis.adapter_config, _origin_of(genesis))


def _led(
    directory: StateDirectory, memory: Memory, answer: Answer, payloads: Sequence[bytes], genesis: pb.Genesis, layout: Layout
) -> State:
    """The state that the answer leads to. What lies here is held against its digest only if nothing is built on it, or that went wrong."""
    known = directory.claimed_state(memory, layout) if answer.steps else directory.state(memory, layout)
    try:
        return apply_steps(answer, payloads, genesis, layout, known, workers_for(layout.size, WORKERS))
    except WrongBaseError:
        directory.state(memory, layout)
        raise


def _synced(directory: StateDirectory, memory: Memory, layout: Layout, task: RoundTask, floor: Floor | None) -> Vector:
    """The synced state, read from disk only where the update depends on it, and held against its digest where it decides more than how a
    dense value is rounded.
    """
    if task.resting or floor is not None:
        return directory.state(memory, layout).vector
    return directory.claimed_state(memory, layout).vector if layout.dense_size else np.zeros(layout.size, np.float32)
