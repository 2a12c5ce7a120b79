"""Experts decoded to PEFT directories on a disk, by digest: bounded in bytes, the one asked for longest ago leaves first.

A directory is complete before it gets its name. What was asked for within `KEEP_S` seconds stays although the bound is exceeded: an
engine may not have read it yet. One process at a time uses a cache: the first free one of `slot-0`, `slot-1`, ... below the folder, so
that replicas on one machine have one each and find it again after a restart.
"""

import fcntl
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from compeft_core.errors import InputError

SLOTS = 64
KEEP_S = 60.0
NEW = ".new"


@dataclass(slots=True)
class _Held:
    total_bytes: int
    asked_s: float


class ExpertCache:
    """Directories by digest below `folder`, `max_bytes` of them. Thread-safe. Errors of the constructor: InputError."""

    def __init__(self, folder: Path, max_bytes: int, keep_s: float = KEEP_S) -> None:
        self.folder, self._file = _taken_slot(folder)
        self._max_bytes, self._keep_s = max_bytes, keep_s
        self._lock = threading.Lock()
        self.evictions = 0
        (self.folder / "experts").mkdir(exist_ok=True)
        self._held: OrderedDict[str, _Held] = OrderedDict()
        found = [path for path in (self.folder / "experts").iterdir() if path.is_dir()]
        for path in sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name)):
            if path.name.startswith(NEW):
                shutil.rmtree(path, ignore_errors=True)
            else:
                self._held[path.name] = _Held(_bytes_of(path), 0.0)

    def close(self) -> None:
        """Give the slot to another process."""
        self._file.close()

    @property
    def held_bytes(self) -> int:
        """Bytes of the directories held."""
        with self._lock:
            return sum(held.total_bytes for held in self._held.values())

    @property
    def digests(self) -> list[str]:
        """Hexadecimal digests of the experts held, the one asked for longest ago first."""
        with self._lock:
            return list(self._held)

    def get(self, digest: bytes) -> Path | None:
        """The directory of an expert, which is now the one asked for last; None if it is not here."""
        name = digest.hex()
        with self._lock:
            if name not in self._held or not (self.folder / "experts" / name).is_dir():
                self._held.pop(name, None)
                return None
            self._held.move_to_end(name)
            self._held[name].asked_s = time.monotonic()
            return self.folder / "experts" / name

    def put(self, digest: bytes, write: Callable[[Path], None]) -> Path:
        """Keep what `write` puts into the fresh folder that it is given. Errors: those of `write`; then nothing is kept."""
        name = digest.hex()
        place, fresh = self.folder / "experts" / name, self.folder / "experts" / f"{NEW}-{name}-{threading.get_ident()}"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            write(fresh)
            with self._lock:
                shutil.rmtree(place, ignore_errors=True)
                fresh.rename(place)
                self._held.pop(name, None)
                self._held[name] = _Held(_bytes_of(place), time.monotonic())
                self._evict()
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return place

    def _evict(self) -> None:
        total, now = sum(held.total_bytes for held in self._held.values()), time.monotonic()
        for name, held in list(self._held.items())[:-1]:
            if total <= self._max_bytes:
                return
            if held.asked_s == 0.0 or now - held.asked_s >= self._keep_s:
                shutil.rmtree(self.folder / "experts" / name, ignore_errors=True)
                del self._held[name]
                total -= held.total_bytes
                self.evictions += 1


def _taken_slot(folder: Path) -> tuple[Path, TextIO]:
    """The first slot that no process holds, and the open file that holds it."""
    for number in range(SLOTS):
        slot = folder / f"slot-{number}"
        try:
            slot.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = (slot / "lock").open("w")
        except OSError as error:
            raise InputError(f"cannot use {slot} as a cache: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        return slot, file
    raise InputError(f"{folder} is in use by {SLOTS} processes: give this one a folder of its own (COMPEFT_CACHE)")


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
