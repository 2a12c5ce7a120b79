"""Reads the expert file: a stream or bytes -> checked values. docs/expert-file.md is normative. It opens no file and writes no tensors.

Every length is checked against a cap, and against the bytes that are there, before it is used.
"""

import hashlib
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from google.protobuf.message import DecodeError

from compeft_core.errors import FormatError, LimitError
from compeft_core.exact import check_exact
from compeft_proto import envelope as dsse
from compeft_proto import packed_manifest
from compeft_proto.convert import read_payload
from compeft_proto.errors import PayloadTypeError, UnknownKeyError
from compeft_proto.expert_manifest import FilePart, Manifest, manifest_from_proto
from compeft_proto.keys import PublicKey
from compeft_proto.packed_manifest import inflate
from compeft_proto.positions_part import read_tables
from compeft_proto.product_part import symbols_of
from compeft_proto.quantised_part import read_entries
from compeft_proto.v1 import envelope_pb2, expert_pb2

MAGIC = b"CPFX"
VERSIONS = (1, 2)
"""1: the envelope holds an ExpertManifest; 2: a packed one (`packed_manifest`). Written is 2."""
VERSION = 2
HEAD_FORMAT = struct.Struct("<4sBII")
"""Magic, version, length of the envelope, its CRC-32."""
MAX_ENVELOPE_BYTES = dsse.MAX_PAYLOAD_BYTES + 4096
AGAIN = "fetch or pack it again"
"""The way out of a damaged file."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The start of a file, before its payloads. keyids: of the signatures, unchecked. verified: whether the key asked for has signed it."""

    manifest: Manifest
    keyids: Sequence[str]
    verified: bool
    manifest_bytes: int
    payload_start: int


def read_start(stream: BinaryIO, total: int, name: str, key: PublicKey | None = None) -> Opened:
    """Check everything of a file of `total` bytes but its payloads; `name` is for errors. With a key, nothing of the manifest is
    parsed before its signature holds.

    Errors: FormatError, LimitError; with a key, UnknownKeyError, SignatureError.
    """
    version, octets = _envelope_bytes(name, stream.read(HEAD_FORMAT.size), stream, total)
    try:
        envelope = envelope_pb2.Envelope.FromString(octets)
    except DecodeError as error:
        raise FormatError(f"{name} holds no signed envelope where it should: {AGAIN}") from error
    payload = _verified(name, envelope, key) if key else _unverified(envelope)
    manifest = manifest_from_proto(_message(payload, version))
    start = HEAD_FORMAT.size + len(octets)
    expected = start + sum(part.payload_bytes for part in manifest.parts)
    if total != expected:
        raise FormatError(f"{name} has {total} bytes, its manifest makes {expected}: {AGAIN}")
    keyids = [s.keyid[:64] for s in envelope.signatures]
    return Opened(manifest, keyids, key is not None, len(envelope.payload), start)


def check_file(data: bytes, name: str, max_parameters: int) -> Manifest:
    """The manifest of a whole file in memory, if every payload is the one it names, and decodes.

    Errors: FormatError, LayoutMismatchError, NotFiniteError, LimitError above `max_parameters`.
    """
    opened = read_start(io.BytesIO(data), len(data), name)
    if opened.manifest.size > max_parameters:
        raise LimitError(f"{name} unpacks to {opened.manifest.size} parameters, the cap is {max_parameters}")
    at = opened.payload_start
    for number, part in enumerate(opened.manifest.parts):
        payload = data[at : at + part.payload_bytes]
        if hashlib.sha256(payload).digest() != part.payload_sha256:
            raise FormatError(f"{name} is damaged: payload {number} is not the one that its manifest names; {AGAIN}")
        check_payload(part, payload)
        at += part.payload_bytes
    return opened.manifest


def check_payload(part: FilePart, payload: bytes) -> None:
    """Check that a payload decodes and agrees with its manifest. Errors: FormatError, LayoutMismatchError, NotFiniteError."""
    if part.coding is not None:
        read_payload(part.coding, payload, part.layout)
    elif part.slices is not None:
        symbols_of(payload, part.modules)
    elif part.steps:
        read_entries(payload, part.layout.size)
    elif part.columns:
        tables_of(part, payload)
    elif part.delta:
        check_exact(payload, part.layout.size)
    elif part.deflated_bytes:
        own_bytes(part, payload)


def tables_of(part: FilePart, payload: bytes) -> list[bytes]:
    """The tensors' own bytes of a part of positions. Errors: FormatError, also if a number does not fit its type; LimitError."""
    found = []
    for table, dtype in zip(read_tables(payload, part.layout, part.columns), part.dtypes, strict=True):
        if dtype == "I32" and int(table.max()) >= 2**31:
            raise FormatError(f"a table of positions has the row or column {int(table.max())}, its type {dtype} holds less")
        found.append(table.astype("<i4" if dtype == "I32" else "<i8").tobytes())
    return found


def own_bytes(part: FilePart, payload: bytes) -> bytes:
    """The tensors' own bytes of an exact part. Errors: FormatError, LimitError if they are deflated and damaged."""
    if not part.deflated_bytes:
        return payload
    found = inflate(payload, part.deflated_bytes)
    if len(found) != part.deflated_bytes:
        raise FormatError(f"exact part inflates to {len(found)} bytes, its manifest says {part.deflated_bytes}")
    return found


def _message(verified: dsse.Verified, version: int) -> expert_pb2.ExpertManifest:
    """The manifest in an envelope's payload. Errors: PayloadTypeError, FormatError, LimitError."""
    if version == 1:
        return dsse.parse(verified, dsse.EXPERT)
    if verified.payload_type != packed_manifest.TYPE:
        raise PayloadTypeError(f"sealed {verified.payload_type[:80]!a}, expected {packed_manifest.TYPE!r}")
    unpacked = dsse.Verified(packed_manifest.unpack(verified.payload), dsse.EXPERT.name, verified.keyid)
    return dsse.parse(unpacked, dsse.EXPERT)


def _envelope_bytes(name: str, head: bytes, stream: BinaryIO, total: int) -> tuple[int, bytes]:
    """The version and the envelope. Errors: FormatError, LimitError."""
    if not head.startswith(MAGIC):
        begins = head[:4].hex() or "with nothing"
        raise FormatError(f"{name} is not an expert file: it begins {begins}, not {MAGIC.hex()}; `compeft pack` makes one")
    if len(head) < HEAD_FORMAT.size:
        raise FormatError(f"{name} is cut off: it has {len(head)} bytes, its head alone {HEAD_FORMAT.size}; {AGAIN}")
    _, version, length, checksum = HEAD_FORMAT.unpack(head)
    if version not in VERSIONS:
        raise FormatError(
            f"{name} is of version {version}, this compeft reads versions {VERSIONS[0]} to {VERSIONS[-1]}: it is damaged, or made by a "
            "newer one"
        )
    if length > MAX_ENVELOPE_BYTES:
        raise LimitError(f"{name} has a manifest of {length} bytes, the cap is {MAX_ENVELOPE_BYTES}")
    octets = stream.read(length)
    if len(octets) != length:
        raise FormatError(f"{name} has {total} bytes, its manifest alone claims {length}: {AGAIN}")
    if zlib.crc32(octets) != checksum:
        raise FormatError(f"{name} is damaged: the checksum of its manifest does not fit; {AGAIN}")
    return version, octets


def _verified(name: str, envelope: envelope_pb2.Envelope, key: PublicKey) -> dsse.Verified:
    try:
        return dsse.verify(envelope, dsse.only(key))
    except UnknownKeyError as error:
        claims = ", ".join(ascii(s.keyid[:40]) for s in envelope.signatures) or "nobody"
        raise UnknownKeyError(f"{name} is not signed by {key.keyid}, but by {claims}") from error


def _unverified(envelope: envelope_pb2.Envelope) -> dsse.Verified:
    """The payload of an envelope whose signature is not checked, in the type that `parse` takes; `keyid` is empty."""
    if len(envelope.payload) > dsse.MAX_PAYLOAD_BYTES or len(envelope.signatures) > dsse.MAX_SIGNATURES:
        raise LimitError(f"manifest of {len(envelope.payload)} bytes with {len(envelope.signatures)} signatures is over the cap")
    return dsse.Verified(envelope.payload, envelope.payload_type, "")
