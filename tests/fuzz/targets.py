"""Everything that takes bytes from outside, as functions of bytes: they return, or raise a CompeftError, and nothing else.

What is decoded is also encoded again: one update, one encoding. Sizes are capped small, so that a claim costs nothing to check.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError

from compeft_client.checkpoints.safetensors_file import read_header
from compeft_client.exchange.connections import Letters
from compeft_client.packing.expert_file import open_expert
from compeft_client.packing.pack import check_payloads
from compeft_core import Encoded, decode, encode, layout_of, parse
from compeft_core.errors import CompeftError
from compeft_core.product import check_product, factors_of, parse_product, write_product
from compeft_proto import envelope as dsse
from compeft_proto.convert import layout_from_proto, layout_to_proto
from compeft_proto.expert_manifest import manifest_from_proto, manifest_to_proto
from compeft_proto.keys import SigningKey, new_key, public_key_from_pem, signing_key_from_pem
from compeft_proto.packed_manifest import unpack
from compeft_proto.positions_part import read_tables, write_tables
from compeft_proto.relay_letter import RecordedSync
from compeft_proto.sync_answer import MemoryCache, fetch, read_answer
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import expert_pb2 as pb

MAX_SIZE = 2**22
KEY = new_key()
AGGREGATOR = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(32)))
"""Signed the statements in the corpus."""
SCRATCH = TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)  # memory, not disk
FOLDER = Path(SCRATCH.name)


def update(data: bytes) -> None:
    """A compressed update: what parses must encode to the same bytes."""
    encoded: Encoded = parse(data, max_size=MAX_SIZE)
    again = encode(decode(encoded), codec=encoded.codec, shapes=encoded.shapes)
    if again != data:
        raise AssertionError("parsed, but encodes to other bytes")


def product(data: bytes) -> None:
    """A product-space encoding after its shapes: their number, then two bytes each, rows and columns less 1, modulo 64.

    What parses must be written as the same bytes, and gives finite factors.
    """
    count = min(data[0], 16) if data else 0
    sides = data[1 : 1 + 2 * count]
    shapes = [(sides[i] % 64 + 1, sides[i + 1] % 64 + 1) for i in range(0, len(sides) - 1, 2)]
    blob = data[1 + 2 * count :]
    symbols = parse_product(blob, shapes)
    if write_product(symbols) != blob or check_product(blob, shapes) != symbols.scales.size:
        raise AssertionError("parsed, but encodes to other bytes")
    if not all(np.isfinite(factor).all() for pair in factors_of(symbols) for factor in pair):
        raise AssertionError("a factor is not finite")


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
    check_payloads(open_expert(_file(data, "fuzz.expert")))


def packed(data: bytes) -> None:
    """A packed manifest: what is one must be written as a message that means the same."""
    found = manifest_from_proto(pb.ExpertManifest.FromString(unpack(data)))
    if manifest_from_proto(manifest_to_proto(found)) != found:
        raise AssertionError("a manifest that does not survive its message")


def positions(data: bytes) -> None:
    """A payload of positions after its number of positions and, in two bytes, of columns less 1: what is one is written the same way."""
    count, columns = (data[0] + 1, 1 + int.from_bytes(data[1:3], "little")) if len(data) > 2 else (1, 1)
    layout = layout_of({"t": (2, count)}, dense=["t"])
    [table] = read_tables(data[3:], layout, [columns])
    if not (read_tables(write_tables([table], [columns]), layout, [columns])[0] == table).all():
        raise AssertionError("a table that does not come back")


def safetensors(data: bytes) -> None:
    """The header of a checkpoint."""
    read_header(_file(data, "fuzz.safetensors"))


def letter(data: bytes) -> None:
    """A letter that others carry, and what its boxes hold, which whoever knows a client's relay key may have put there."""
    came = xp.Letter.FromString(data)
    with suppress(CompeftError):
        Letters(KEY, came)
    call, known = RecordedSync(xp.SyncReply.FromString(box) for box in came.answer), dsse.only(AGGREGATOR.public)
    answer = read_answer(call, known, known)
    fetch(call, MemoryCache(), answer.needed)


def _file(data: bytes, name: str) -> Path:
    """The bytes in a file, always the same one of this process: a fuzzer makes millions."""
    path = FOLDER / name
    path.write_bytes(data)
    return path


TARGETS: dict[str, Callable[[bytes], None]] = {
    "update": update,
    "product": product,
    "envelope": envelope,
    "manifest": manifest,
    "key": key,
    "expert_file": expert_file,
    "safetensors": safetensors,
    "packed": packed,
    "positions": positions,
    "letter": letter,
}


def check(target: str, data: bytes) -> None:
    """One case: typed errors are fine, everything else is a finding."""
    with suppress(CompeftError, DecodeError):
        TARGETS[target](data)
