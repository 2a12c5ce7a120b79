"""Files: read with a typed error; written so that they survive a crash, whole or not at all, and durable when the call returns."""

from pathlib import Path

from compeft_client.whole_file import written_whole
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
