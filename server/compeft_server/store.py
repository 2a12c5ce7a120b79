"""The store: content-addressed bytes in a directory. It knows nothing of experts, rounds or who sent what.

Promises: when `put` or `commit` returns, the bytes are durable (written, synced, renamed); what `read` gives has the SHA-256 it
is asked for; what a sender has sent survives a restart, and is not in the store before `commit`.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from compeft_proto.errors import ChunkMismatchError, UnknownExpertError

PART_BYTES = 256 * 2**10
"""Bytes handed out at a time when a chunk is streamed."""


class ChunkStore:
    """Chunks of at most 1 MiB, each in a file named by its SHA-256."""

    def __init__(self, directory: Path) -> None:
        self._chunks = directory / "chunks"
        self._partial = directory / "partial"
        for folder in (self._chunks, self._partial):
            folder.mkdir(parents=True, exist_ok=True)

    def has(self, sha256: bytes) -> bool:
        """Whether the chunk is here, whole."""
        return self._path(sha256).exists()

    def put(self, data: bytes) -> bytes:
        """Keep `data`; returns its SHA-256. Doing it twice is the same as once."""
        sha256 = hashlib.sha256(data).digest()
        path = self._path(sha256)
        if not path.exists():
            partial = self._partial / f"put-{os.getpid()}-{sha256.hex()}"
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _rename(partial, path)
        return sha256

    def read(self, sha256: bytes) -> bytes:
        """A whole chunk. Errors: UnknownExpertError if it is not here, ChunkMismatchError if the disk has altered it."""
        return b"".join(self.stream(sha256, 0)) if self.has(sha256) else _missing(sha256)

    def stream(self, sha256: bytes, offset: int) -> Iterator[bytes]:
        """A chunk from `offset` on, PART_BYTES at a time. Errors: as `read`."""
        try:
            data = self._path(sha256).read_bytes()
        except FileNotFoundError:
            _missing(sha256)
        if hashlib.sha256(data).digest() != sha256:
            raise ChunkMismatchError(f"chunk {sha256.hex()[:16]} has changed on the aggregator's disk: restore it from a backup")
        for start in range(offset, len(data), PART_BYTES):
            yield data[start : start + PART_BYTES]

    def received(self, sender: str, sha256: bytes) -> int:
        """Bytes of the chunk that `sender` has sent so far."""
        path = self._part(sender, sha256)
        return path.stat().st_size if path.exists() else 0

    def append(self, sender: str, sha256: bytes, data: bytes) -> None:
        """Keep the next bytes of a chunk that `sender` is sending."""
        with self._part(sender, sha256).open("ab") as file:
            file.write(data)

    def check(self, sender: str, sha256: bytes) -> None:
        """Hold what `sender` has sent against its digest. Errors: ChunkMismatchError, and then it is dropped."""
        data = self._part(sender, sha256).read_bytes()
        found = hashlib.sha256(data).digest()
        if found != sha256:
            self.drop(sender, sha256)
            raise ChunkMismatchError(f"chunk {sha256.hex()[:16]} arrived as {found.hex()[:16]}: send it again")

    def peek(self, sender: str, sha256: bytes) -> bytes:
        """A chunk that is here, or that `sender` has sent but nobody has committed. Errors: as `read`."""
        path = self._part(sender, sha256)
        return path.read_bytes() if path.exists() else self.read(sha256)

    def commit(self, sender: str, sha256: bytes) -> None:
        """Move a checked chunk of `sender` into the store; nothing if it is there already."""
        partial = self._part(sender, sha256)
        if partial.exists():
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            _rename(partial, self._path(sha256))

    def drop(self, sender: str, sha256: bytes) -> None:
        """Forget what `sender` has sent of a chunk."""
        self._part(sender, sha256).unlink(missing_ok=True)

    def _path(self, sha256: bytes) -> Path:
        name = sha256.hex()
        return self._chunks / name[:2] / name

    def _part(self, sender: str, sha256: bytes) -> Path:
        return self._partial / f"{sender}-{sha256.hex()}"


def _missing(sha256: bytes) -> bytes:
    raise UnknownExpertError(f"no chunk {sha256.hex()[:16]} in the store")


def _rename(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    source.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
