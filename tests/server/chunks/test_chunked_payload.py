import hashlib

import numpy as np
import pytest

from compeft_core import Compression, check, compress, encode, layout_of, parse
from compeft_core.errors import FormatError
from compeft_proto.chunk_refs import CHUNK_BYTES, refs_of
from compeft_proto.errors import ChunkMismatchError
from compeft_server.chunks.chunked_payload import Chunked

LAYOUT = layout_of({"a": (4_000, 2_000), "head": (1_000, 700)}, dense=["head"])


def encoding() -> bytes:
    """More than 2 MiB: an index, streams of many blocks, and a dense part that begins in the middle of a chunk."""
    vector = np.random.default_rng(1).standard_normal(LAYOUT.size, np.float32)
    return encode(compress(LAYOUT, vector, Compression(0.2)))


def chunked(payload: bytes, read_chunks: list[bytes] | None = None) -> Chunked:
    """The payload, by chunks; who asks for one is noted."""
    store = {
        hashlib.sha256(payload[at : at + CHUNK_BYTES]).digest(): payload[at : at + CHUNK_BYTES]
        for at in range(0, len(payload), CHUNK_BYTES)
    }

    def read(sha256: bytes) -> bytes:
        if read_chunks is not None:
            read_chunks.append(sha256)
        return store[sha256]

    return Chunked(refs_of(payload), read)


@pytest.mark.parametrize(
    "part",
    [
        slice(0, 0),
        slice(0, 5),
        slice(CHUNK_BYTES - 1, CHUNK_BYTES + 1),
        slice(7, 2 * CHUNK_BYTES + 3),
        slice(None),
        slice(-1, None),
    ],
)
def test_any_part_of_a_chunked_payload_is_that_of_the_whole(part: slice) -> None:
    payload = np.random.default_rng(2).bytes(2 * CHUNK_BYTES + 100)
    assert chunked(payload)[part] == payload[part]


def test_a_chunk_that_was_altered_is_named_and_not_used() -> None:
    payload = bytes(10)
    with pytest.raises(ChunkMismatchError, match=hashlib.sha256(payload).hexdigest()[:16]):
        Chunked(refs_of(payload), lambda _: bytes(9) + b"1")[0:1]


def test_an_encoding_is_checked_chunk_by_chunk_and_each_is_read_once() -> None:
    payload, read_chunks = encoding(), list[bytes]()
    found, expected = check(chunked(payload, read_chunks)), parse(payload).contents
    assert len(payload) > 2 * CHUNK_BYTES
    assert [ref.sha256 for ref in refs_of(payload)] == read_chunks
    assert found.scales.tolist() == expected.scales.tolist()
    assert (found.codec, found.ternary_size, found.dense_size, found.count) == (
        expected.codec,
        expected.ternary_size,
        expected.dense_size,
        expected.count,
    )


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 1.0])
def test_what_parse_refuses_is_refused_chunk_by_chunk_too(share: float) -> None:
    payload = bytearray(encoding())
    payload[round(share * (len(payload) - 1))] ^= 0xFF
    outcomes = []
    for attempt in (lambda: parse(bytes(payload)), lambda: check(chunked(bytes(payload)))):
        try:
            attempt()
            outcomes.append("")
        except FormatError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
