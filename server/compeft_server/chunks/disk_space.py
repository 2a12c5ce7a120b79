"""Room on the disk: a floor below which nothing is taken in, a share of it for each client's unfinished uploads, and a typed error
when it is full all the same.
"""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from compeft_proto.errors import StorageFullError
from compeft_server.domain.limits import Limits

T = TypeVar("T")
FULL_MS = 10_000
"""When a client is asked to come back to a full disk."""
RESERVE_FILE, RESERVE_BYTES = "reserve", 2 * 2**20
"""A file that only takes room, so that every command of the operator has some on a full disk."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UploadQuota:
    """The folder of unfinished uploads, whose files are named `<keyid>-<digest>`; None, and no check, where they are in memory."""

    def __init__(self, folder: Path | None, limits: Limits) -> None:
        self._folder, self._limits = folder, limits

    def check(self, keyid: str, missing_bytes: int) -> None:
        """Whether `missing_bytes` more may come from a client. What it left unfinished for longer than a manifest lives is dropped.

        Errors: StorageFullError.
        """
        if self._folder is None:
            return
        held = self._sweep(self._folder, keyid)
        if held + missing_bytes > self._limits.max_partial_bytes_per_client:
            raise StorageFullError(
                f"key {keyid} has {held} bytes of unfinished uploads here and wants to send {missing_bytes} more, its share is "
                f"{self._limits.max_partial_bytes_per_client}: finish one, or retry when they have expired",
                FULL_MS,
            )
        free = shutil.disk_usage(self._folder).free
        if free - missing_bytes < self._limits.min_free_bytes:
            raise StorageFullError(
                f"aggregator's disk has {free} bytes free, {missing_bytes} more would leave less than {self._limits.min_free_bytes}: "
                "its operator must make room",
                FULL_MS,
            )

    def _sweep(self, folder: Path, keyid: str) -> int:
        """Bytes that the client has here, of uploads that can still be finished."""
        expired, held = time.time() - self._limits.max_age_ms / 1000, 0
        for entry in os.scandir(folder):
            if not entry.name.startswith(f"{keyid}-"):
                continue
            try:
                status = entry.stat()
                if status.st_mtime < expired:
                    os.unlink(entry.path)
                else:
                    held += status.st_size
            except FileNotFoundError:
                continue
        return held


def keep_reserve(data: Path) -> None:
    """Set room on the disk of a data directory aside, if it is not and there is some."""
    path = data / RESERVE_FILE
    if path.exists() or shutil.disk_usage(data).free < 4 * RESERVE_BYTES:
        return
    with suppress(OSError), path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)


def give_way(data: Path) -> None:
    """Free the room that was set aside, if the disk of a data directory has none left. The next `compeft serve` sets it aside again."""
    path = data / RESERVE_FILE
    if path.exists() and shutil.disk_usage(data).free < RESERVE_BYTES:
        path.unlink()


@contextmanager
def typed_storage_errors() -> Iterator[None]:
    """A full disk that a file operation inside meets comes out as StorageFullError; the ledger raises its own."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFullError(f"aggregator's disk is full ({error.strerror}): its operator must make room", FULL_MS) from error
