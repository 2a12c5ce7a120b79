"""What an edge client remembers of one expert between processes: its synced state, its residual, and the update under way.

Files in one folder; `state.json` names the others by digest and is written last, so a crash leaves the old memory or the new one.

The residual is what compression left behind. An update goes through three steps, each durable: *pending* (written before the
first byte is sent: the update, and the task vector plus residual it was made from), *sent* by the exchange, *settled* at the next
sync by what the aggregator signs:
    merged      residual = (task vector + residual) - what the update carried
    not merged  residual = (task vector + residual)
So a lost, refused or repeated upload neither loses nor doubles anything. The residual is never touched anywhere else. It is kept as the
two terms of the difference, which are on disk already, so settling writes only the index.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

from compeft_client.durable_files import write_durably
from compeft_client.workers import WORKERS
from compeft_core import Layout, State, Vector, add_to, parse, state_digest
from compeft_core.errors import InputError
from compeft_core.parallel import workers_for
from compeft_proto.errors import ConflictError
from compeft_proto.name_checks import check_name

INDEX = "state.json"
NAME_LENGTH = 32
"""Hexadecimal digits of an XXH3-128."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An update that the aggregator may or may not have: file names of its sealed manifest, its payload, the vector it was made from,
    and what it carries of that, by the codec that is fast to read.
    """

    sequence: int
    envelope: str
    payload: str
    target: str
    carried: str


@dataclass(frozen=True, slots=True)
class Memory:
    """The index: version of the synced state (-1: none), file names ("" : none), newest sequence number used, rate of the newest upload
    (0: none was measured).

    The synced state is named by its digest, a vector by its XXH3-128 (earlier by its SHA-256), any other file by its SHA-256. The residual
    is the vector `target` without what `carried` encodes.
    """

    version: int = -1
    genesis: str = ""
    synced: str = ""
    target: str = ""
    carried: str = ""
    sequence: int = 0
    upload_bytes_per_s: float = 0.0
    pending: Pending | None = None


class StateDirectory:
    """The memory of one expert in `folder`. One process at a time: take `lock` around everything."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder

    @classmethod
    def of(cls, state: Path, expert: str) -> "StateDirectory":
        """The folder of an expert; `~` cannot be in a name, so no two experts share one, nor does one lie in another's."""
        return cls(state / check_name(expert, "expert").replace("/", "~"))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder. Errors: ConflictError if another process holds it."""
        with (self._folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConflictError(f"state directory {self._folder} is in use by another process") from error
            yield

    def load(self) -> Memory:
        """The index; an empty one before the first. Errors: InputError if it is damaged."""
        path = self._folder / INDEX
        if not path.exists():
            return Memory()
        try:
            values = json.loads(path.read_text())
            pending = values.pop("pending")
            return Memory(pending=Pending(**pending) if pending else None, **values)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{path} is damaged: move the folder away to start from a fresh sync") from error

    def read(self, name: str) -> bytes:
        """A file that the index names. Errors: InputError if it is gone or altered."""
        path = self._folder / name
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data).hexdigest() != name:
            raise self._damaged(name)
        return data

    def write(self, data: bytes | memoryview) -> str:
        """Keep `data` under its SHA-256; returns that name. It counts once an index names it."""
        name = hashlib.sha256(data).hexdigest()
        write_durably(self._folder / name, data)
        return name

    def held(self, name: str) -> bytes | None:
        """A file that may have been written before a crash, by its SHA-256 in hexadecimal; None if it is not here, whole."""
        path = self._folder / name
        data = path.read_bytes() if path.exists() else b""
        return data if data and hashlib.sha256(data).hexdigest() == name else None

    def save(self, memory: Memory) -> None:
        """Make `memory` the index, durably, and drop the files that it no longer names."""
        write_durably(self._folder / INDEX, json.dumps(asdict(memory)).encode())
        kept = {memory.genesis, memory.synced, memory.target, memory.carried, INDEX, "lock"}
        if memory.pending:
            kept |= {memory.pending.envelope, memory.pending.payload, memory.pending.target, memory.pending.carried}
        for path in self._folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def state(self, memory: Memory, layout: Layout) -> State:
        """The synced state; zeros without a name if absent. Errors: InputError if it is damaged."""
        found = self.claimed_state(memory, layout)
        if memory.synced and state_digest(layout, found.vector) != found.digest:
            raise self._damaged(memory.synced)
        return found

    def claimed_state(self, memory: Memory, layout: Layout) -> State:
        """The same, not held against its digest: for whoever checks the digest of what it leads to. Errors: InputError."""
        if not memory.synced:
            return State(np.zeros(layout.size, np.float32), b"")
        return State(self._floats(memory.synced, layout), bytes.fromhex(memory.synced))

    def write_state(self, state: State) -> str:
        """Keep a state; returns its name."""
        write_durably(self._folder / state.digest.hex(), np.ascontiguousarray(state.vector, "<f4").data)
        return state.digest.hex()

    def residual(self, memory: Memory, layout: Layout) -> Vector:
        """The residual, float32 of shape (layout.size,). Errors: InputError if it is damaged."""
        if not memory.target:
            return np.zeros(layout.size, np.float32)
        vector = self._floats(memory.target, layout)
        name = _name_of(vector) if len(memory.target) == NAME_LENGTH else hashlib.sha256(vector.data).hexdigest()
        if name != memory.target:
            raise self._damaged(memory.target)
        if memory.carried:
            workers = workers_for(layout.size, WORKERS)
            add_to(parse(self.read(memory.carried), max_size=layout.size, workers=workers), vector, -1.0, workers=workers)
        return vector

    def write_vector(self, vector: Vector) -> str:
        """Keep a vector; returns its name."""
        name = _name_of(vector)
        write_durably(self._folder / name, np.ascontiguousarray(vector, "<f4").data)
        return name

    def _floats(self, name: str, layout: Layout) -> Vector:
        path = self._folder / name
        if not path.exists():
            raise self._damaged(name)
        vector = np.fromfile(path, "<f4").astype(np.float32, copy=False)
        if vector.size != layout.size:
            raise InputError(f"{path} holds {vector.size} parameters, the layout has {layout.size}")
        return vector

    def _damaged(self, name: str) -> InputError:
        return InputError(f"{self._folder / name} is damaged: move the folder away to start from a fresh sync")


def _name_of(vector: Vector) -> str:
    """Ten times as fast to make as a SHA-256, and only damage has to be noticed: whoever can write here has the client's memory anyway."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(vector, "<f4").data)


def settled(memory: Memory, merged_sequence: int, waiting_sequence: int) -> Memory:
    """The memory with its pending update, if any, settled by the aggregator's signed word.

    It stays pending while its round is open (`waiting_sequence`).
    """
    pending = memory.pending
    if pending is None or pending.sequence == waiting_sequence:
        return memory
    carried = pending.carried if pending.sequence <= merged_sequence else ""
    return replace(memory, target=pending.target, carried=carried, pending=None)
