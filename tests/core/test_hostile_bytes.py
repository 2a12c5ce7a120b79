"""Any bytes: either an update that has exactly these bytes as its encoding, or a FormatError or LimitError. Never a crash."""

import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compeft_core import FormatError, LimitError, Update, decode, encode, parse
from tests.core import reference_decoder
from tests.core.strategies import gaussian_update, updates

HEAD = b"CPFT\x01\x01"
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
    assert encode(decode(encoded)) == blob
    reference_decoder.decode(blob)
    return False


@given(st.binary(max_size=200))
@example(b"")
@example(HEAD)
def test_random_bytes_after_the_head(rest: bytes) -> None:
    is_refused_or_canonical(HEAD + rest)
    assert is_refused_or_canonical(rest)


@given(st.integers(1, 300), st.integers(0, 40), st.binary(min_size=4, max_size=4), st.binary(max_size=80))
def test_random_streams_after_a_plausible_header(size: int, kept: int, scale: bytes, rest: bytes) -> None:
    size_bytes = bytes([size & 0x7F | 0x80, size >> 7]) if size > 127 else bytes([size])
    is_refused_or_canonical(HEAD + size_bytes + b"\0\x01" + scale + bytes([kept]) + rest)


@given(updates(), st.data())
def test_a_flipped_bit(update: Update, data: st.DataObject) -> None:
    blob = bytearray(encode(update))
    bit = data.draw(st.integers(0, 8 * len(blob) - 1))
    blob[bit // 8] ^= 1 << bit % 8
    is_refused_or_canonical(bytes(blob))


@given(updates(), st.data())
def test_every_proper_prefix_and_every_longer_encoding_is_refused(update: Update, data: st.DataObject) -> None:
    blob = encode(update)
    assert is_refused_or_canonical(blob[: data.draw(st.integers(0, len(blob) - 1))])
    assert is_refused_or_canonical(blob + data.draw(st.binary(min_size=1, max_size=9)))


@pytest.mark.parametrize("density", [0.01, 0.05, 0.4, 0.8])
def test_flipped_bits_of_a_large_update(density: float) -> None:
    blob = encode(gaussian_update(70_000, density, dense=2))
    for bit in range(0, 8 * len(blob), 8 * len(blob) // 20 + 7):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        is_refused_or_canonical(bytes(changed))


@pytest.mark.parametrize(
    "claim",
    [
        FULL_VARINT + b"\0\x01" + bytes(4),
        b"\x01" + b"\xfe\xff\xff\xff\x0f" + b"\x01" + bytes(4) + b"\0\0",
        FULL_VARINT + b"\0" + b"\x80\x80\x04" + bytes(300),
        FULL_VARINT + b"\0" + FULL_VARINT,
        b"\x80\x80\x04\0\x01" + bytes(4) + b"\x80\x80\x04" + FULL_VARINT,
    ],
    ids=["blocks", "dense values", "groups", "too many groups", "stream"],
)
def test_a_huge_claim_in_a_few_bytes_is_refused_without_the_memory_for_it(claim: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(FormatError):
        parse(HEAD + claim)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_size_above_the_formats_cap_is_refused() -> None:
    with pytest.raises(LimitError):
        parse(HEAD + FULL_VARINT + FULL_VARINT)
