"""Parts: what senders have sent of chunks that are not committed yet, each in a file. Stores without files of their own use it too.

A part survives a restart of the process. It is not synced: what a crash of the machine tears, `check` catches, and it is sent again.
"""

import hashlib
from pathlib import Path

from compeft_proto.errors import ChunkMismatchError


class Parts:
    """The parts in one directory, which is made if absent. Other files in it are leftovers, swept like parts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, sender: str, sha256: bytes) -> Path:
        """The file of one part."""
        return self.directory / f"{sender}-{sha256.hex()}"

    def received(self, sender: str, sha256: bytes) -> int:
        """Number of bytes received."""
        path = self.path(sender, sha256)
        return path.stat().st_size if path.exists() else 0

    def append(self, sender: str, sha256: bytes, data: bytes) -> None:
        """Add the next bytes."""
        with self.path(sender, sha256).open("ab") as file:
            file.write(data)

    def read(self, sender: str, sha256: bytes) -> bytes | None:
        """A whole part; None if absent."""
        try:
            return self.path(sender, sha256).read_bytes()
        except FileNotFoundError:
            return None

    def check(self, sender: str, sha256: bytes) -> None:
        """Compare a part with its digest. Errors: ChunkMismatchError, and then it is dropped."""
        found = hashlib.sha256(self.read(sender, sha256) or b"").digest()
        if found != sha256:
            self.drop(sender, sha256)
            raise ChunkMismatchError(f"chunk {sha256.hex()[:16]} arrived as {found.hex()[:16]}: send it again")

    def drop(self, sender: str, sha256: bytes) -> None:
        """Delete a part."""
        self.path(sender, sha256).unlink(missing_ok=True)

    def sweep(self, touched_before_ms: int, dry_run: bool = False) -> int:
        """Remove what nobody has written to since this time; how many files that are."""
        stale = [path for path in self.directory.iterdir() if _touched_ms(path) < touched_before_ms]
        for path in () if dry_run else stale:
            path.unlink(missing_ok=True)
        return len(stale)


def _touched_ms(path: Path) -> float:
    try:
        return path.stat().st_mtime_ns / 1e6
    except FileNotFoundError:
        return float("inf")
