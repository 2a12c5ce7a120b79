"""The expert file on disk: one packed expert in one file, docs/expert-file.md. It writes no tensors; the checks of what is read are
in `compeft_proto.expert_file`.
"""

import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from compeft_client.checkpoints.source import begins_like_one
from compeft_core.errors import FormatError, InputError, LimitError
from compeft_proto import envelope as dsse
from compeft_proto import packed_manifest
from compeft_proto.expert_file import AGAIN, HEAD_FORMAT, MAGIC, MAX_ENVELOPE_BYTES, VERSION, read_start
from compeft_proto.expert_manifest import Manifest, manifest_to_proto
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.v1 import envelope_pb2

SUFFIX = ".expert"


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
    packed = packed_manifest.pack(message.SerializeToString(deterministic=True))
    if key:
        envelope = dsse.seal_bytes(key, packed_manifest.TYPE, packed)
    else:
        envelope = envelope_pb2.Envelope(payload=packed, payload_type=packed_manifest.TYPE)
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
            opened = read_start(stream, total, str(path), key)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return ExpertFile(path, opened.manifest, opened.keyids, opened.verified, opened.manifest_bytes, opened.payload_start, total)


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
        raise FormatError(f"{file.path} is damaged: payload {number} is not the one that its manifest names; {AGAIN}")
    return payload


def is_expert_file(path: Path) -> bool:
    """Whether a path is a file that is named, or begins, like an expert file."""
    return path.is_file() and (path.suffix == SUFFIX or begins_like_one(path))
