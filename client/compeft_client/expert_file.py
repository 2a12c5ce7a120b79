"""The expert file: one packed expert in one file, docs/expert-file.md. Bytes to checked values and back; it writes no tensors.

Every length is checked against a cap, and against the bytes that are there, before it is used.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError

from compeft_client.expert_manifest import Manifest, manifest_from_proto, manifest_to_proto
from compeft_core.errors import FormatError, InputError, LimitError
from compeft_proto import envelope as dsse
from compeft_proto.errors import UnknownKeyError
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.v1 import envelope_pb2

MAGIC = b"CPFX"
VERSION = 1
HEAD_FORMAT = struct.Struct("<4sBII")
"""Magic, version, length of the envelope, its CRC-32."""
MAX_ENVELOPE_BYTES = dsse.MAX_PAYLOAD_BYTES + 4096


@dataclass(frozen=True, slots=True)
class ExpertFile:
    """An opened file. `keyids` are those that claim to have signed it; `verified` says that the key asked for did."""

    path: Path
    manifest: Manifest
    keyids: Sequence[str]
    verified: bool
    manifest_bytes: int
    payload_start: int
    total_bytes: int


def write_expert(stream: BinaryIO, manifest: Manifest, payloads: Sequence[bytes], key: SigningKey | None) -> int:
    """Write a whole expert file; the number of bytes before the payloads. Errors: LimitError."""
    message = manifest_to_proto(manifest)
    if key:
        envelope = dsse.seal(key, dsse.EXPERT, message)
    else:
        envelope = envelope_pb2.Envelope(payload=message.SerializeToString(), payload_type=dsse.EXPERT.name)
    octets = envelope.SerializeToString()
    if len(octets) > MAX_ENVELOPE_BYTES:
        raise LimitError(f"manifest of {len(octets)} bytes, the cap is {MAX_ENVELOPE_BYTES}")
    stream.write(HEAD_FORMAT.pack(MAGIC, VERSION, len(octets), zlib.crc32(octets)))
    stream.write(octets)
    for payload in payloads:
        stream.write(payload)
    return HEAD_FORMAT.size + len(octets)


def open_expert(path: Path, key: PublicKey | None = None) -> ExpertFile:
    """Check everything of a file but its payloads. With a key, nothing of the manifest is parsed before its signature holds.

    Errors: InputError if it cannot be read; FormatError, LimitError; with a key, UnknownKeyError, SignatureError.
    """
    try:
        with path.open("rb") as stream:
            total = os.fstat(stream.fileno()).st_size
            octets = _envelope_bytes(path, stream.read(HEAD_FORMAT.size), stream, total)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        envelope = envelope_pb2.Envelope.FromString(octets)
    except DecodeError as error:
        raise FormatError(f"{path} holds no signed envelope where it should") from error
    payload = _verified(path, envelope, key) if key else _unverified(envelope)
    manifest = manifest_from_proto(dsse.parse(payload, dsse.EXPERT))
    start = HEAD_FORMAT.size + len(octets)
    expected = start + sum(part.payload_bytes for part in manifest.parts)
    if total != expected:
        raise FormatError(f"{path} has {total} bytes, its manifest makes {expected}")
    keyids = [s.keyid[:64] for s in envelope.signatures]
    return ExpertFile(path, manifest, keyids, key is not None, len(envelope.payload), start, total)


def read_payload_of(file: ExpertFile, number: int) -> bytes:
    """The payload of part `number`, if it is what the manifest names. Errors: FormatError, InputError."""
    parts = file.manifest.parts
    start = file.payload_start + sum(part.payload_bytes for part in parts[:number])
    try:
        with file.path.open("rb") as stream:
            stream.seek(start)
            payload = stream.read(parts[number].payload_bytes)
    except OSError as error:
        raise InputError(f"cannot read {file.path}: {error.strerror}") from error
    if hashlib.sha256(payload).digest() != parts[number].payload_sha256:
        raise FormatError(f"{file.path} is damaged: payload {number} is not the one that its manifest names")
    return payload


def is_expert_file(path: Path) -> bool:
    """Whether a path is a file that begins like an expert file."""
    return path.is_file() and read_start_of(path) == MAGIC


def read_start_of(path: Path) -> bytes:
    """The first bytes of a file. Errors: InputError."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _envelope_bytes(path: Path, head: bytes, stream: BinaryIO, total: int) -> bytes:
    if not head.startswith(MAGIC):
        raise FormatError(f"{path} is no expert file: it begins {head[:4].hex() or 'with nothing'}, not {MAGIC.hex()}")
    if len(head) < HEAD_FORMAT.size:
        raise FormatError(f"{path} ends after {len(head)} bytes, its head has {HEAD_FORMAT.size}")
    _, version, length, checksum = HEAD_FORMAT.unpack(head)
    if version != VERSION:
        raise FormatError(f"{path} is of version {version}, this compeft reads version {VERSION}")
    if length > MAX_ENVELOPE_BYTES:
        raise LimitError(f"{path} has a manifest of {length} bytes, the cap is {MAX_ENVELOPE_BYTES}")
    octets = stream.read(length)
    if len(octets) != length:
        raise FormatError(f"{path} has {total} bytes, its manifest alone claims {length}")
    if zlib.crc32(octets) != checksum:
        raise FormatError(f"{path} is damaged: the checksum of its manifest does not fit")
    return octets


def _verified(path: Path, envelope: envelope_pb2.Envelope, key: PublicKey) -> dsse.Verified:
    try:
        return dsse.verify(envelope, dsse.only(key))
    except UnknownKeyError as error:
        claims = ", ".join(ascii(s.keyid[:40]) for s in envelope.signatures) or "nobody"
        raise UnknownKeyError(f"{path} is not signed by {key.keyid}, but by {claims}") from error


def _unverified(envelope: envelope_pb2.Envelope) -> dsse.Verified:
    """The payload of an envelope that nobody asked to verify, in the type that `parse` takes; `keyid` is empty."""
    if len(envelope.payload) > dsse.MAX_PAYLOAD_BYTES or len(envelope.signatures) > dsse.MAX_SIGNATURES:
        raise LimitError(f"manifest of {len(envelope.payload)} bytes with {len(envelope.signatures)} signatures is over the cap")
    return dsse.Verified(envelope.payload, envelope.payload_type, "")
