"""Chunks of a payload, the references that a manifest holds to them, and the checks on both."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from compeft_core.errors import FormatError, LimitError
from compeft_proto.errors import ChunkMismatchError
from compeft_proto.v1 import expert_pb2 as pb

Bytes = TypeVar("Bytes", bytes, memoryview)


CHUNK_BYTES = 2**20
"""Bytes of a chunk; the last one of a payload may be shorter."""


MAX_CHUNKS = 2**16


DIGEST_BYTES = 32


def chunks(blob: Bytes) -> list[Bytes]:
    """A payload cut into chunks, in order."""
    return [blob[i : i + CHUNK_BYTES] for i in range(0, len(blob), CHUNK_BYTES)]


def refs_of(blob: Bytes) -> list[pb.ChunkRef]:
    """The references to a payload's chunks, in order."""
    return [pb.ChunkRef(sha256=hashlib.sha256(part).digest(), size=len(part)) for part in chunks(blob)]


def check_refs(refs: Sequence[pb.ChunkRef], max_bytes: int) -> int:
    """Bytes in all of the chunks that `refs` name. Errors: FormatError, LimitError above `max_bytes`."""
    if len(refs) > MAX_CHUNKS:
        raise LimitError(f"manifest names {len(refs)} chunks, the cap is {MAX_CHUNKS}")
    for ref in refs:
        check_digest(ref.sha256, "chunk")
        if not 0 < ref.size <= CHUNK_BYTES:
            raise LimitError(f"chunk of {ref.size} bytes, expected 1 to {CHUNK_BYTES}")
    if any(ref.size != CHUNK_BYTES for ref in refs[:-1]):
        raise FormatError(f"a chunk before the last is not of {CHUNK_BYTES} bytes")
    total = sum(ref.size for ref in refs)
    if total > max_bytes:
        raise LimitError(f"manifest names {total} bytes of chunks, the cap is {max_bytes}")
    return total


def check_chunk(ref: pb.ChunkRef, data: bytes) -> bytes:
    """`data`, if it has the size and digest of `ref`. Errors: ChunkMismatchError."""
    found = hashlib.sha256(data).digest()
    if found != ref.sha256 or len(data) != ref.size:
        raise ChunkMismatchError(
            f"chunk {ref.sha256.hex()[:16]} of {ref.size} bytes arrived as {found.hex()[:16]} of {len(data)}: send it again"
        )
    return data


def check_digest(digest: bytes, what: str) -> bytes:
    """`digest`, if it has 32 bytes. Errors: FormatError."""
    if len(digest) != DIGEST_BYTES:
        raise FormatError(f"{what} digest of {len(digest)} bytes, SHA-256 has {DIGEST_BYTES}")
    return digest
