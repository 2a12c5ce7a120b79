"""Any bytes: either an update that has exactly these bytes as its encoding, or a FormatError or LimitError. Never a crash."""

import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compeft_core import (
    Codec,
    Compression,
    FormatError,
    LimitError,
    Update,
    compress,
    decode,
    encode,
    layout_of,
    parse,
    shapes_of,
)
from compeft_core.format.header import varints
from tests.core.format import reference_decoder
from tests.core.strategies import codings, gaussian_update, rank_one

HEAD = b"CPFT\x01\x01"
CONTEXT = b"CPFT\x01\x02"
RICE4 = b"CPFT\x01\x03"
FULL_VARINT = b"\xff\xff\xff\xff\x0f"
CAP = 1_000_000


def is_refused_or_canonical(blob: bytes) -> bool:
    """Whether it is refused; both decoders must say the same."""
    try:
        encoded = parse(blob, max_size=CAP)
    except LimitError:
        return True
    except FormatError:
        with pytest.raises(reference_decoder.Malformed):
            reference_decoder.decode(blob)
        return True
    assert encode(decode(encoded), codec=encoded.codec, shapes=encoded.shapes) == blob
    reference_decoder.decode(blob)
    return False


@given(st.binary(max_size=200))
@example(b"")
@example(HEAD)
def test_random_bytes_after_the_head(rest: bytes) -> None:
    is_refused_or_canonical(HEAD + rest)
    is_refused_or_canonical(CONTEXT + rest)
    is_refused_or_canonical(RICE4 + rest)
    assert is_refused_or_canonical(rest)


@given(st.integers(1, 300), st.integers(0, 40), st.binary(min_size=4, max_size=4), st.binary(max_size=80))
def test_random_streams_after_a_plausible_header(size: int, kept: int, scale: bytes, rest: bytes) -> None:
    size_bytes = bytes([size & 0x7F | 0x80, size >> 7]) if size > 127 else bytes([size])
    is_refused_or_canonical(HEAD + size_bytes + b"\0\x01" + scale + bytes([kept]) + rest)
    is_refused_or_canonical(RICE4 + size_bytes + b"\0\x01" + scale + bytes([kept]) + bytes(4) + rest)


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 256), st.binary(min_size=1, max_size=30))
def test_random_context_streams_after_a_plausible_header(rows: int, columns: int, kept: int, stream: bytes) -> None:
    size = varints(rows * columns) + b"\0\x01\0\0\x80\x3f"
    is_refused_or_canonical(CONTEXT + size + varints(0, rows, columns, kept, len(stream)) + stream)


@given(codings(), st.data())
def test_a_flipped_bit(coding: tuple[Update, dict[str, object]], data: st.DataObject) -> None:
    blob = bytearray(encode(coding[0], **coding[1]))
    bit = data.draw(st.integers(0, 8 * len(blob) - 1))
    blob[bit // 8] ^= 1 << bit % 8
    is_refused_or_canonical(bytes(blob))


@given(codings(), st.data())
def test_every_proper_prefix_and_every_longer_encoding_is_refused(
    coding: tuple[Update, dict[str, object]], data: st.DataObject
) -> None:
    blob = encode(coding[0], **coding[1])
    assert is_refused_or_canonical(blob[: data.draw(st.integers(0, len(blob) - 1))])
    assert is_refused_or_canonical(blob + data.draw(st.binary(min_size=1, max_size=9)))


@pytest.mark.parametrize("codec", ["rice", "rice4"])
@pytest.mark.parametrize("density", [0.01, 0.05, 0.4, 0.8])
def test_flipped_bits_of_a_large_update(density: float, codec: Codec) -> None:
    blob = encode(gaussian_update(70_000, density, dense=2), codec=codec)
    for bit in range(0, 8 * len(blob), 8 * len(blob) // 20 + 7):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        is_refused_or_canonical(bytes(changed))


CLAIMS = {
    "blocks": HEAD + FULL_VARINT + b"\0\x01" + bytes(4),
    "dense values": HEAD + b"\x01" + b"\xfe\xff\xff\xff\x0f" + b"\x01" + bytes(4) + b"\0\0",
    "groups": HEAD + FULL_VARINT + b"\0" + b"\x80\x80\x04" + bytes(300),
    "too many groups": HEAD + FULL_VARINT + b"\0" + FULL_VARINT,
    "blocks of four lanes": RICE4 + FULL_VARINT + b"\0\x01" + bytes(4) + bytes(300),
    "lane": RICE4 + b"\x80\x80\x04\0\x01" + bytes(4) + b"\x80\x80\x02" + b"\0\0\0" + FULL_VARINT,
    "stream": HEAD + b"\x80\x80\x04\0\x01" + bytes(4) + b"\x80\x80\x04" + FULL_VARINT,
    "segments": CONTEXT + FULL_VARINT + b"\0\x01" + bytes(4) + varints(0, 2**20, 1, 1, 4095) + bytes(50),
    "positions": CONTEXT + FULL_VARINT + b"\0\x01" + bytes(4) + varints(0, 65535, 65537) + b"\x01\x08" + bytes(8),
    "positions, none kept": CONTEXT + FULL_VARINT + b"\0\x01" + bytes(4) + varints(0, 65535, 65537) + b"\0\0",
    "entries": CONTEXT + varints(2**22, 0, 1) + bytes(4) + varints(0, 2048, 2048, 2**22, 1030) + bytes(1030),
    "shapes": CONTEXT + varints(2**30, 0, 1) + bytes(4) + varints(0, 1, 1, 1, 2**30 - 1) + bytes(50),
}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_huge_claim_in_a_few_bytes_is_refused_without_the_memory_for_it(claim: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(FormatError):
        parse(claim)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("density", [0.05, 0.4])
def test_flipped_bits_of_an_update_by_context(density: float) -> None:
    layout = layout_of({"a": (16, 90), "b": (90, 16)})
    blob = encode(compress(layout, rank_one(layout, 1), Compression(density)), codec="context", shapes=shapes_of(layout))
    assert blob.startswith(CONTEXT)
    for bit in range(0, 8 * len(blob), 53):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        is_refused_or_canonical(bytes(changed))


def test_a_size_above_the_formats_cap_is_refused() -> None:
    with pytest.raises(LimitError):
        parse(HEAD + FULL_VARINT + FULL_VARINT)
