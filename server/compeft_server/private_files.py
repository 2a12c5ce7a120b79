"""Files of the aggregator: private ones are refused where others may touch them; written ones are whole or not there, and durable."""

import os
from pathlib import Path

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


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` by `data` at once: temporary file, fsync, rename, fsync of the folder.

    Errors: InputError if the place cannot be written to; then nothing has changed, and nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
