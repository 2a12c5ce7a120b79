"""The default store: each chunk in a file named by its SHA-256, in a directory of this machine.

A chunk is written beside its place, synced and renamed; the newest claim is the file's time of modification. A lock on the directory
makes a claim and a removal exclude each other, whichever processes of this machine they are in.
"""

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compeft_proto.durable_files import sync_folder
from compeft_server.chunks.partial_uploads import Parts
from compeft_server.chunks.store import StoredChunk, checked, in_parts, missing


class DirectoryStore:
    """Chunks under `chunks/`, parts under `partial/`, both made if absent."""

    def __init__(self, directory: Path) -> None:
        self._chunks = directory / "chunks"
        self._chunks.mkdir(parents=True, exist_ok=True)
        self._parts = Parts(directory / "partial")

    @property
    def partial(self) -> Path:
        """As `ChunkStore` specifies."""
        return self._parts.directory

    def has(self, sha256: bytes) -> bool:
        """As `ChunkStore` specifies."""
        with self._locked(fcntl.LOCK_SH):
            return self._claim(sha256)

    def put(self, data: bytes) -> bytes:
        """As `ChunkStore` specifies."""
        sha256 = hashlib.sha256(data).digest()
        if not self.has(sha256):
            beside = self._parts.path(f"put-{os.getpid()}-{threading.get_ident()}", sha256)
            try:
                beside.write_bytes(data)
                self._move(beside, sha256)
            except OSError:
                beside.unlink(missing_ok=True)
                raise
        return sha256

    def read(self, sha256: bytes) -> bytes:
        """As `ChunkStore` specifies."""
        try:
            return checked(sha256, self._path(sha256).read_bytes())
        except FileNotFoundError:
            missing(sha256)

    def stream(self, sha256: bytes, offset: int) -> Iterator[bytes]:
        """As `ChunkStore` specifies."""
        yield from in_parts(self.read(sha256), offset)

    def received(self, sender: str, sha256: bytes) -> int:
        """As `ChunkStore` specifies."""
        return self._parts.received(sender, sha256)

    def append(self, sender: str, sha256: bytes, data: bytes) -> None:
        """As `ChunkStore` specifies."""
        self._parts.append(sender, sha256, data)

    def check(self, sender: str, sha256: bytes) -> None:
        """As `ChunkStore` specifies."""
        self._parts.check(sender, sha256)

    def peek(self, sender: str, sha256: bytes) -> bytes:
        """As `ChunkStore` specifies."""
        part = self._parts.read(sender, sha256)
        return self.read(sha256) if part is None else part

    def commit(self, sender: str, sha256: bytes) -> None:
        """As `ChunkStore` specifies."""
        try:
            self._move(self._parts.path(sender, sha256), sha256)
        except FileNotFoundError:
            if not self.has(sha256):
                missing(sha256)

    def drop(self, sender: str, sha256: bytes) -> None:
        """As `ChunkStore` specifies."""
        self._parts.drop(sender, sha256)

    def chunks(self) -> Iterator[StoredChunk]:
        """As `ChunkStore` specifies."""
        for path in self._chunks.glob("??/*"):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            yield StoredChunk(bytes.fromhex(path.name), found.st_size, found.st_mtime_ns // 1_000_000)

    def remove(self, sha256: bytes, claimed_before_ms: int) -> bool:
        """As `ChunkStore` specifies."""
        path = self._path(sha256)
        with self._locked(fcntl.LOCK_EX):
            if not path.exists() or path.stat().st_mtime_ns // 1_000_000 >= claimed_before_ms:
                return False
            path.unlink()
            return True

    def remove_parts(self, touched_before_ms: int, dry_run: bool = False) -> int:
        """As `ChunkStore` specifies."""
        return self._parts.sweep(touched_before_ms, dry_run)

    def _path(self, sha256: bytes) -> Path:
        name = sha256.hex()
        return self._chunks / name[:2] / name

    def _claim(self, sha256: bytes) -> bool:
        try:
            os.utime(self._path(sha256))
        except FileNotFoundError:
            return False
        return True

    def _move(self, source: Path, sha256: bytes) -> None:
        """Into its place, durably, and claimed."""
        target = self._path(sha256)
        with source.open("rb") as file:
            os.fsync(file.fileno())
        _make_folder(target.parent)
        with self._locked(fcntl.LOCK_SH):
            os.utime(source)
            source.replace(target)
        sync_folder(target.parent)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        descriptor = os.open(self._chunks, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)


def _make_folder(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
