"""An aggregator's answer to a sync: what it says, the bytes that go with it, and the state they lead to. For whoever
follows an expert log: edge clients, readers, a conductor that wants the arrays back.

Nothing is parsed before its signature is checked, and the state at the end is the one that the statement names, or there is none.
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
from compeft_proto.snapshot import decode_snapshot, reference_of
from compeft_proto.state_steps import check_state, initial_state, next_state
from compeft_proto.transport import Dialogue
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import expert_pb2 as pb

SyncDialogue = Dialogue[xp.SyncCall, xp.SyncReply]
Step = pb.VersionManifest | pb.SnapshotManifest
Tick = Callable[[int], None]
Progress = Callable[[int], AbstractContextManager[Tick]]
"""Given the bytes to come: what to tell how many have just come."""


class SyncStream(Protocol):
    """A Sync call: one over a connection, or one that others have carried."""

    def send(self, message: xp.SyncCall) -> None:
        """Want a chunk."""

    def receive(self) -> xp.SyncReply:
        """The next of what the aggregator says."""


class ChunkCache(Protocol):
    """Where chunks wait while a fetch that broke is tried again, by their SHA-256 in hexadecimal."""

    def held(self, name: str) -> bytes | None:
        """The chunk, whole, or None."""

    def write(self, data: bytes) -> str:
        """Keep a chunk; its name."""


class MemoryCache:
    """Chunks kept as long as this object."""

    def __init__(self) -> None:
        self._chunks: dict[str, bytes] = {}

    def held(self, name: str) -> bytes | None:
        """The chunk, or None."""
        return self._chunks.get(name)

    def write(self, data: bytes) -> str:
        """Keep a chunk; its name."""
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
    """Progress that nobody watches."""
    yield lambda _done: None


def read_answer(dialogue: SyncStream, current: dsse.Lookup, ever: dsse.Lookup) -> Answer:
    """What the aggregator says, before any chunk. `current` knows its key of today, `ever` also those it had before.

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
    """The payload of each step. Chunks that an earlier, broken call brought are in `kept`, the others come from the aggregator.

    Errors: ChunkMismatchError, FormatError; those of the call.
    """
    refs = [ref for step in steps for ref in step.chunks]
    with progress(sum(ref.size for ref in refs)) as tick:
        return [b"".join(_chunk(dialogue, kept, ref, len(refs) > 1, tick) for ref in step.chunks) for step in steps]


def apply_steps(
    answer: Answer, payloads: Sequence[bytes], genesis: pb.Genesis, layout: Layout, state: State, workers: int = 1
) -> State:
    """The state that the answer leads to from `state`: the one that the statement names.

    Errors: WrongBaseError if it is another, FormatError, NotFiniteError.
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
    """One chunk; one of many is kept, so that it is not fetched again if the call breaks before the last."""
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
