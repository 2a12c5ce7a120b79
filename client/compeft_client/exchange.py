"""EdgeClient: sync an expert from an aggregator, submit a task vector to it. The SDK; no Flower, no torch.

Nothing that arrives is used before its signature, its place in the log and its state digest are checked. A client never goes
back to an older version than the one it has unless told to.
"""

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compeft_client import trust
from compeft_client.files import write_durably
from compeft_client.state import Memory, Pending, StateDirectory, settle
from compeft_core import Layout, Vector, compress, parse, state_digest
from compeft_core.errors import FormatError, InputError, LayoutMismatchError
from compeft_core.resting import active_places, share_of_active
from compeft_proto import envelope as dsse
from compeft_proto import manifest as mf
from compeft_proto.believed import Believed
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.task import Origin, RoundTask
from compeft_proto.transport import Dialogue, SubmitDialogue, Tls, open_channel, persist, upload
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope

NONCE_BYTES = 16
PATIENCE_S = 30.0
LIFETIME_MS = 60 * 60 * 1000
"""How long a sealed update may be under way."""
ROUNDING, TINY = np.float32(2**-8), np.float32(2**-24)
"""What loading a state into a bfloat16 or float16 adapter may change, in relation to a value and beside it."""

SyncDialogue = Dialogue[xp.SyncCall, xp.SyncReply]


@dataclass(frozen=True, slots=True)
class Edge:
    """Who this client is, whom it trusts, where it keeps its memory. Without TLS the address must be loopback. A transfer that
    fails is tried again, from where it stopped, for `patience_s` seconds without success. `older` are keys that the aggregator had
    before: versions that they signed still hold, everything else must be signed by `aggregator`, or by a key that it introduced; `learn` is
    the file of public keys that such a key is written to.
    """

    address: str
    key: SigningKey
    aggregator: PublicKey
    state: Path
    tls: Tls | None = None
    patience_s: float = PATIENCE_S
    older: tuple[PublicKey, ...] = ()
    learn: Path | None = None


@dataclass(frozen=True, slots=True)
class Synced:
    """An expert at one version. `vector` is float32 of shape (layout.size,), the state that the version's digest names;
    `adapter_config` is canonical JSON, empty if its publisher did not say.
    """

    expert: str
    version: int
    layout: Layout
    vector: Vector
    adapter_config: bytes


@dataclass(frozen=True, slots=True)
class Trained:
    """What local training produced: the task vector (tuned minus synced, float32 of shape (layout.size,)), the number of examples
    behind it, metrics by name, and the SHA-256 of the base model and adapter configuration it was trained with.
    """

    task_vector: Vector
    num_examples: int
    metrics: Mapping[str, float]
    origin: Origin = field(default_factory=Origin)


class EdgeClient:
    """One edge client of one aggregator; a context manager, because it holds a connection."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._channel = open_channel(edge.address, edge.tls)
        self._stub = rpc.ExpertExchangeStub(self._channel)
        self._believed = Believed((edge.aggregator, *edge.older), self._channel, self._learned)

    def __enter__(self) -> "EdgeClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def sync(self, expert: str, version: int | None = None, run: str = "", round_number: int = 0) -> Synced:
        """Bring the local copy of `expert` to `version` (the newest by default) and settle the pending update.

        `run` and `round_number` say on whose behalf, for the ledger. Errors: UnreachableError; UnknownExpertError;
        SignatureError, WrongBaseError, ReplayError, FormatError or ChunkMismatchError if the answer cannot be trusted. After an
        error the local copy is what it was.
        """
        directory = self._memory_of(expert)
        with directory.lock():
            memory = directory.load()
            trust.check_goal(expert, memory.version, version)
            request = pb.SyncRequest(
                expert=expert,
                keyid=self._edge.key.keyid,
                have_version=memory.version if memory.version >= 0 else None,
                want_version=version,
                nonce=secrets.token_bytes(NONCE_BYTES),
                issued_at_ms=_now_ms(),
                run=run,
                round=round_number,
                sequence=memory.sequence,
            )

            def attempt() -> tuple[pb.SyncStatement, list[pb.VersionManifest], list[bytes]]:
                with SyncDialogue(self._stub.Sync, self._edge.address) as dialogue:
                    statement, manifests = self._ask(dialogue, request, memory)
                    return statement, manifests, [_payload(dialogue, directory, manifest.chunks) for manifest in manifests]

            statement, manifests, payloads = persist(lambda: self._believed.trusting(attempt), self._edge.patience_s)
            memory, synced = _follow(directory, memory, expert, manifests, payloads)
            settle(directory, memory, synced.layout, statement.merged_sequence, statement.waiting_sequence)
        return synced

    def check_ready(self, task: RoundTask) -> None:
        """Raise now, before anybody trains, what `submit` would raise of this client's memory. Errors: WrongBaseError, ConflictError."""
        directory = self._memory_of(task.expert)
        with directory.lock():
            memory = directory.load()
            trust.check_ready(task.expert, memory.version, task.version, memory.pending.sequence if memory.pending else None)

    def submit(self, task: RoundTask, trained: Trained) -> pb.Receipt:
        """Compress the task vector plus the residual, seal it and send it for one round; the aggregator's receipt.

        What compression leaves behind is kept for the next round, and so is all that earlier rounds left of tensors that rest in
        this one. Errors: WrongBaseError if another version was synced last; ConflictError while an earlier update waits for its
        round to close; NotFiniteError; InputError if training changed a tensor that rests; the aggregator's refusal;
        UnreachableError. After an error of the exchange the update stays pending, and the next `sync` settles it.
        """
        directory = self._memory_of(task.expert)
        with directory.lock():
            memory = directory.load()
            trust.check_ready(task.expert, memory.version, task.version, memory.pending.sequence if memory.pending else None)
            layout = mf.layout_from_proto(_genesis(directory, memory).layout)
            task = replace(task, compression=share_of_active(layout, task.compression, task.resting))
            synced, active = directory.vector(memory.synced, layout), active_places(layout, task.resting)
            target = _task_vector(task, trained, synced, active) + directory.vector(memory.residual, layout)
            payload = mf.payload_of(layout, compress(layout, np.where(active, target, np.float32(0)), task.compression))
            update = self._update(task, trained, payload, layout)
            update.sequence = memory.sequence + 1
            update.base_state_digest = state_digest(layout, synced)
            sealed = dsse.seal(self._edge.key, dsse.UPDATE, update)
            pending = Pending(
                sequence=update.sequence,
                envelope=directory.write(sealed.SerializeToString()),
                payload=directory.write(payload),
                target=directory.write_vector(target),
            )
            directory.save(replace(memory, sequence=pending.sequence, pending=pending))
            return self._send(sealed, payload)

    def resume(self, expert: str) -> pb.Receipt | None:
        """Go on with the update that was under way when an earlier process ended; None if there is none. Errors: as `submit`."""
        directory = self._memory_of(expert)
        with directory.lock():
            pending = directory.load().pending
            if pending is None:
                return None
            return self._send(Envelope.FromString(directory.read(pending.envelope)), directory.read(pending.payload))

    def _send(self, sealed: Envelope, payload: bytes) -> pb.Receipt:
        """Submit until the aggregator has answered; its receipt, checked."""
        refs = mf.refs_of(payload)

        def attempt() -> Envelope:
            with SubmitDialogue(self._stub.Submit, self._edge.address) as dialogue:
                return upload(dialogue, sealed, refs, payload)

        answer = persist(attempt, self._edge.patience_s)
        receipt = self._believed.trusting(lambda: dsse.open_envelope(answer, self._believed.any, dsse.RECEIPT))
        trust.check_receipt(receipt, hashlib.sha256(sealed.payload).digest())
        return receipt

    def _learned(self, keys: tuple[PublicKey, ...]) -> None:
        """The aggregator has changed its key."""
        if self._edge.learn is not None:
            write_durably(self._edge.learn, b"".join(key.to_pem() for key in keys))

    def _memory_of(self, expert: str) -> StateDirectory:
        """The folder of an expert; `~` cannot be in a name, so no two experts share one, nor does one lie in another's."""
        return StateDirectory(self._edge.state / mf.check_name(expert, "expert").replace("/", "~"))

    def _ask(
        self, dialogue: SyncDialogue, request: pb.SyncRequest, memory: Memory
    ) -> tuple[pb.SyncStatement, list[pb.VersionManifest]]:
        """The signed statement, and the signed versions that `memory` lacks."""
        dialogue.send(xp.SyncCall(envelope=dsse.seal(self._edge.key, dsse.SYNC_REQUEST, request)))
        statement = dsse.open_envelope(dialogue.receive().statement, self._believed.newest, dsse.SYNC_STATEMENT)
        trust.check_statement(statement, request, memory.version)
        manifests = []
        while not (reply := dialogue.receive()).listed:
            manifests.append(dsse.open_envelope(reply.version, self._believed.any, dsse.VERSION))
        trust.check_chain(manifests, request.expert, memory.version, statement.want_version)
        return statement, manifests

    def _update(self, task: RoundTask, trained: Trained, payload: bytes, layout: Layout) -> pb.UpdateManifest:
        now = _now_ms()
        return pb.UpdateManifest(
            expert=task.expert,
            base_version=task.version,
            run=task.run,
            round=task.round,
            round_nonce=task.nonce,
            keyid=self._edge.key.keyid,
            base_model_digest=trained.origin.base_model_digest,
            layout_digest=layout.digest,
            adapter_config_digest=trained.origin.adapter_config_digest,
            coding=mf.coding_of(parse(payload, max_size=layout.size), task.compression),
            num_examples=trained.num_examples,
            metrics=mf.metrics_to_proto(trained.metrics.items()),
            issued_at_ms=now,
            expires_at_ms=now + LIFETIME_MS,
            chunks=mf.refs_of(payload),
        )


def _genesis(directory: StateDirectory, memory: Memory) -> pb.Genesis:
    return pb.Genesis.FromString(directory.read(memory.genesis))


def _follow(
    directory: StateDirectory,
    memory: Memory,
    expert: str,
    manifests: Sequence[pb.VersionManifest],
    payloads: Sequence[bytes],
) -> tuple[Memory, Synced]:
    """Apply the versions in order, each checked against its signed digest, and save where they lead."""
    if memory.version < 0:
        memory = replace(memory, genesis=directory.write(manifests[0].genesis.SerializeToString()))
    genesis = _genesis(directory, memory)
    layout = mf.layout_from_proto(genesis.layout)
    vector = directory.vector(memory.synced, layout)
    for manifest, payload in zip(manifests, payloads, strict=True):
        first = manifest.version == 0
        vector = (
            mf.initial_state(manifest.genesis, layout, payload) if first else mf.next_state(manifest, layout, vector, payload)
        )
    if manifests:
        memory = replace(memory, version=manifests[-1].version, synced=directory.write_vector(vector))
        directory.save(memory)
    return memory, Synced(expert, memory.version, layout, vector, genesis.adapter_config)


def _task_vector(task: RoundTask, trained: Trained, synced: Vector, active: NDArray[np.bool_]) -> Vector:
    """The task vector, zero where the round rests. Errors: LayoutMismatchError; InputError if training changed what rests, beyond
    the rounding of a bfloat16 adapter: then the average would not be the exact one that was asked for.
    """
    vector = trained.task_vector
    if vector.shape != synced.shape:
        raise LayoutMismatchError(f"task vector has shape {vector.shape}, the layout says {synced.shape}")
    if not task.resting:
        return vector
    changed = int(np.count_nonzero(np.abs(vector[~active]) > np.abs(synced[~active]) * ROUNDING + TINY))
    if changed:
        raise InputError(
            f"round {task.round} rests {', '.join(task.resting)}, but training changed {changed} parameters there: "
            "freeze them (compeft_client.adapter.rest)"
        )
    return np.where(active, vector, np.float32(0))


def _payload(dialogue: SyncDialogue, directory: StateDirectory, refs: Sequence[pb.ChunkRef]) -> bytes:
    """A version's payload: chunks that an earlier, broken call brought come from the directory, the others from the aggregator."""
    parts = []
    for ref in refs:
        part = directory.held(ref.sha256.hex())
        if part is None:
            part = _fetch(dialogue, ref)
            if len(refs) > 1:
                directory.write(part)
        parts.append(part)
    return b"".join(parts)


def _fetch(dialogue: SyncDialogue, ref: pb.ChunkRef) -> bytes:
    """One chunk of a version, checked."""
    dialogue.send(xp.SyncCall(want=xp.NeededChunk(sha256=ref.sha256)))
    data = bytearray()
    while len(data) < ref.size:
        part = dialogue.receive().data
        if not part:
            raise FormatError(f"the aggregator sent an empty part of chunk {ref.sha256.hex()[:16]}")
        data += part
    return mf.check_chunk(ref, bytes(data))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
