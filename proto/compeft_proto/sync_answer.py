"""Read an aggregator's answer to a Sync call, fetch its payloads, and apply its steps to a state. Used by edge clients, readers and the
conductor.

    answer = read_answer(stream, current, ever)
    payloads = fetch(stream, MemoryCache(), answer.needed)
    state = apply_steps(answer, payloads, genesis, layout, state)

Invariants: nothing is parsed before its signature is checked; `apply_steps` returns the state that the signed statement names, or raises.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from compeft_core import Layout, State, state_of
from compeft_core.errors import FormatError
from compeft_proto import envelope as dsse
from compeft_proto.chunk_refs import check_chunk
from compeft_proto.snapshot import decode_snapshot
from compeft_proto.state_steps import check_state, initial_state, next_state, reference_of
from compeft_proto.transport import Dialogue
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import expert_pb2 as pb

SyncDialogue = Dialogue[xp.SyncCall, xp.SyncReply]
Step = pb.VersionManifest | pb.SnapshotManifest
Tick = Callable[[int], None]
Progress = Callable[[int], AbstractContextManager[Tick]]
"""Total bytes -> a context that gives a function to call with the number of bytes of each part received."""


class SyncStream(Protocol):
    """A Sync call: one over a connection, or a recorded one that arrived by relay."""

    def send(self, message: xp.SyncCall) -> None:
        """Ask for a chunk."""

    def receive(self) -> xp.SyncReply:
        """The aggregator's next reply."""


class ChunkCache(Protocol):
    """Keeps chunks, by their SHA-256 in hexadecimal, while an interrupted fetch is retried."""

    def held(self, name: str) -> bytes | None:
        """The whole chunk, or None."""

    def write(self, data: bytes) -> str:
        """Keep a chunk and return its name."""


class MemoryCache:
    """A ChunkCache in memory."""

    def __init__(self) -> None:
        self._chunks: dict[str, bytes] = {}

    def held(self, name: str) -> bytes | None:
        """The chunk, or None."""
        return self._chunks.get(name)

    def write(self, data: bytes) -> str:
        """Keep a chunk and return its name."""
        name = hashlib.sha256(data).hexdigest()
        self._chunks[name] = data
        return name


@dataclass(frozen=True, slots=True)
class Answer:
    """The signed statement, and the signed steps in the order in which they are applied."""

    statement: pb.SyncStatement
    steps: tuple[Step, ...] = ()

    @property
    def needed(self) -> tuple[Step, ...]:
        """The steps whose bytes are needed: from the last whole state on."""
        return needed(self.steps)


def needed(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps whose bytes are needed: from the last whole state on."""
    whole = [number for number, step in enumerate(steps) if _is_whole(step)]
    return steps[whole[-1] if whole else 0 :]


@contextmanager
def no_progress(_total: int) -> Iterator[Tick]:
    """Progress that is not reported."""
    yield lambda _done: None


def read_answer(dialogue: SyncStream, current: dsse.Lookup, ever: dsse.Lookup) -> Answer:
    """Read the statement and the steps that come before any chunk. `current` finds the newest key, `ever` also earlier ones.

    Errors: SignatureError, UnknownKeyError, PayloadTypeError, FormatError; those of the call.
    """
    statement = dsse.open_envelope(dialogue.receive().statement, current, dsse.SYNC_STATEMENT)
    steps: list[Step] = []
    while not (reply := dialogue.receive()).listed:
        if reply.HasField("snapshot"):
            steps.append(dsse.open_envelope(reply.snapshot, ever, dsse.SNAPSHOT))
        else:
            steps.append(dsse.open_envelope(reply.version, ever, dsse.VERSION))
    return Answer(statement, tuple(steps))


def fetch(dialogue: SyncStream, kept: ChunkCache, steps: Sequence[Step], progress: Progress = no_progress) -> list[bytes]:
    """The payload of each step. Chunks in `kept`, from an earlier interrupted call, are not asked for again.

    Errors: ChunkMismatchError, FormatError; those of the call.
    """
    refs = [ref for step in steps for ref in step.chunks]
    with progress(sum(ref.size for ref in refs)) as tick:
        return [b"".join(_chunk(dialogue, kept, ref, len(refs) > 1, tick) for ref in step.chunks) for step in steps]


def apply_steps(
    answer: Answer, payloads: Sequence[bytes], genesis: pb.Genesis, layout: Layout, state: State, workers: int = 1
) -> State:
    """Apply the answer's steps to `state` and return the state that the statement names.

    Errors: WrongBaseError if the steps lead to another state; FormatError; NotFiniteError.
    """
    seeded = genesis.state_digest if genesis.WhichOneof("initial") == "seeded" else None
    for step, payload in zip(answer.needed, payloads, strict=True):
        if isinstance(step, pb.VersionManifest) and step.parent_state_digest == seeded != state.digest:
            state = initial_state(genesis, layout)
        state = _applied(step, payload, genesis, layout, state, workers)
    statement = answer.statement
    if statement.state_digest == seeded != state.digest:
        state = initial_state(genesis, layout)
    check_state(statement.expert, statement.want_version, statement.state_digest, state)
    return state


def _applied(step: Step, payload: bytes, genesis: pb.Genesis, layout: Layout, state: State, workers: int) -> State:
    if isinstance(step, pb.SnapshotManifest):
        return state_of(layout, decode_snapshot(payload, reference_of(genesis, layout)))
    if step.version == 0:
        return initial_state(step.genesis, layout, payload)
    return next_state(step, layout, state, payload, workers)


def _is_whole(step: Step) -> bool:
    return isinstance(step, pb.SnapshotManifest) or step.version == 0 or step.snapshot


def _chunk(dialogue: SyncStream, kept: ChunkCache, ref: pb.ChunkRef, one_of_many: bool, tick: Tick) -> bytes:
    """One chunk; one of many is kept, so that it is not fetched again if the call is interrupted before the last."""
    chunk = kept.held(ref.sha256.hex())
    if chunk is None:
        chunk = _fetched(dialogue, ref)
        if one_of_many:
            kept.write(chunk)
    tick(ref.size)
    return chunk


def _fetched(dialogue: SyncStream, ref: pb.ChunkRef) -> bytes:
    """One chunk, checked."""
    dialogue.send(xp.SyncCall(want=xp.NeededChunk(sha256=ref.sha256)))
    data = bytearray()
    while len(data) < ref.size:
        part = dialogue.receive().data
        if not part:
            raise FormatError(f"the aggregator sent an empty part of chunk {ref.sha256.hex()[:16]}")
        data += part
    return check_chunk(ref, bytes(data))
