"""Files of both sides: read with a typed error, private ones refused where others may touch them; written whole or not at all, and durable
when the call returns. The only module of this package that touches files.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from compeft_core.errors import InputError
from compeft_proto.keys import check_private


def read_file(path: Path) -> bytes:
    """The bytes of a file. Errors: InputError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def read_private(path: Path) -> bytes:
    """The bytes of a file that only its owner may touch. Errors: InputError, ForbiddenError."""
    data = read_file(path)
    check_private(str(path), path.stat().st_mode)
    return data


def write_durably(path: Path, data: bytes | memoryview, mode: int = 0o644) -> None:
    """Replace `path` by `data` at once, durably. Errors: InputError; then nothing has changed, and nothing is left behind."""
    with written_whole(path, mode) as stream:
        stream.write(data)


@contextmanager
def written_whole(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A stream to a temporary file, which becomes `path`, durably, when the block ends; if it fails, nothing is left behind.

    Errors: InputError if the place cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Errors: OSError."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
