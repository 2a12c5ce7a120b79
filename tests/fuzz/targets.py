"""Everything that takes bytes from outside, as functions of bytes: they return, or raise a CompeftError, and nothing else.

What is decoded is also encoded again: one update, one encoding. Sizes are capped small, so that a claim costs nothing to check.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.message import DecodeError

from compeft_client.checkpoint import read_header
from compeft_client.expert_file import open_expert
from compeft_client.packing import check_payloads
from compeft_core import Encoded, decode, encode, parse
from compeft_core.errors import CompeftError
from compeft_proto import envelope as dsse
from compeft_proto.keys import new_key, public_key_from_pem, signing_key_from_pem
from compeft_proto.manifest import layout_from_proto, layout_to_proto
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import expert_pb2 as pb

MAX_SIZE = 2**22
KEY = new_key()


def update(data: bytes) -> None:
    """A compressed update: what parses must encode to the same bytes."""
    encoded: Encoded = parse(data, max_size=MAX_SIZE)
    again = encode(decode(encoded), codec=encoded.codec, shapes=encoded.shapes)
    if again != data:
        raise AssertionError("parsed, but encodes to other bytes")


def envelope(data: bytes) -> None:
    """A sealed message of unknown origin."""
    dsse.verify(xp.SubmitRequest.FromString(data).envelope, dsse.only(KEY.public))


def manifest(data: bytes) -> None:
    """A layout in a signed manifest: what is one must be written the same way."""
    message = pb.Layout.FromString(data)
    layout = layout_from_proto(message)
    if layout_from_proto(layout_to_proto(layout)) != layout:
        raise AssertionError("a layout that does not survive its message")


def key(data: bytes) -> None:
    """Key files."""
    with suppress(CompeftError):
        signing_key_from_pem(data, "fuzz.key", 0o100600)
    public_key_from_pem(data, "fuzz.pub")


def expert_file(data: bytes) -> None:
    """A packed expert: open it, and check every payload, as unpack, inspect and verify do."""
    with _file(data, "fuzz.expert") as path:
        check_payloads(open_expert(path))


def safetensors(data: bytes) -> None:
    """The header of a checkpoint."""
    with _file(data, "fuzz.safetensors") as path:
        read_header(path)


class _file:  # noqa: N801  # used as a function
    """The bytes in a file."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data, self._name = data, name

    def __enter__(self) -> Path:
        self._folder = TemporaryDirectory()
        path = Path(self._folder.name) / self._name
        path.write_bytes(self._data)
        return path

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "update": update,
    "envelope": envelope,
    "manifest": manifest,
    "key": key,
    "expert_file": expert_file,
    "safetensors": safetensors,
}


def check(target: str, data: bytes) -> None:
    """One case: typed errors are fine, everything else is a finding."""
    with suppress(CompeftError, DecodeError):
        TARGETS[target](data)
