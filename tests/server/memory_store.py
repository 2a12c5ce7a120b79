"""A store in memory for tests: it keeps every promise of a store but durability."""

import hashlib
from collections.abc import Iterator
from threading import Lock

from compeft_proto.clock import now_ms
from compeft_proto.errors import ChunkMismatchError
from compeft_server.chunks.store import StoredChunk, checked, in_parts, missing


class MemoryStore:
    """Chunks and parts in dictionaries."""

    def __init__(self) -> None:
        self._chunks: dict[bytes, tuple[bytes, int]] = {}
        self._parts: dict[tuple[str, bytes], tuple[bytes, int]] = {}
        self._lock = Lock()

    @property
    def partial(self) -> None:
        """As `ChunkStore` specifies."""
        return None

    def has(self, sha256: bytes) -> bool:
        """As `ChunkStore` specifies."""
        with self._lock:
            if sha256 not in self._chunks:
                return False
            self._chunks[sha256] = (self._chunks[sha256][0], now_ms())
            return True

    def put(self, data: bytes) -> bytes:
        """As `ChunkStore` specifies."""
        sha256 = hashlib.sha256(data).digest()
        with self._lock:
            self._chunks[sha256] = (data, now_ms())
        return sha256

    def read(self, sha256: bytes) -> bytes:
        """As `ChunkStore` specifies."""
        found = self._chunks.get(sha256)
        return checked(sha256, found[0]) if found else missing(sha256)

    def stream(self, sha256: bytes, offset: int) -> Iterator[bytes]:
        """As `ChunkStore` specifies."""
        yield from in_parts(self.read(sha256), offset)

    def received(self, sender: str, sha256: bytes) -> int:
        """As `ChunkStore` specifies."""
        return len(self._part(sender, sha256) or b"")

    def append(self, sender: str, sha256: bytes, data: bytes) -> None:
        """As `ChunkStore` specifies."""
        self._parts[sender, sha256] = ((self._part(sender, sha256) or b"") + data, now_ms())

    def check(self, sender: str, sha256: bytes) -> None:
        """As `ChunkStore` specifies."""
        found = hashlib.sha256(self._part(sender, sha256) or b"").digest()
        if found != sha256:
            self.drop(sender, sha256)
            raise ChunkMismatchError(f"chunk {sha256.hex()[:16]} arrived as {found.hex()[:16]}: send it again")

    def peek(self, sender: str, sha256: bytes) -> bytes:
        """As `ChunkStore` specifies."""
        part = self._part(sender, sha256)
        return self.read(sha256) if part is None else part

    def commit(self, sender: str, sha256: bytes) -> None:
        """As `ChunkStore` specifies."""
        part = self._part(sender, sha256)
        if part is not None:
            self.put(part)
            self.drop(sender, sha256)
        elif not self.has(sha256):
            missing(sha256)

    def drop(self, sender: str, sha256: bytes) -> None:
        """As `ChunkStore` specifies."""
        self._parts.pop((sender, sha256), None)

    def chunks(self) -> Iterator[StoredChunk]:
        """As `ChunkStore` specifies."""
        yield from [StoredChunk(sha256, len(data), at) for sha256, (data, at) in list(self._chunks.items())]

    def remove(self, sha256: bytes, claimed_before_ms: int) -> bool:
        """As `ChunkStore` specifies."""
        with self._lock:
            if sha256 not in self._chunks or self._chunks[sha256][1] >= claimed_before_ms:
                return False
            del self._chunks[sha256]
            return True

    def remove_parts(self, touched_before_ms: int, dry_run: bool = False) -> int:
        """As `ChunkStore` specifies."""
        stale = [key for key, (_, at) in list(self._parts.items()) if at < touched_before_ms]
        for key in () if dry_run else stale:
            self.drop(*key)
        return len(stale)

    def _part(self, sender: str, sha256: bytes) -> bytes | None:
        found = self._parts.get((sender, sha256))
        return found[0] if found else None
