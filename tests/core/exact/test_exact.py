"""Exact deltas: every bit comes back, and nothing but what the encoder writes is read."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from compeft_core.errors import FormatError, InputError
from compeft_core.exact import decode_exact, encode_exact
from compeft_core.exact.delta import BLOCK
from tests.core.exact.reference import reference_decode

SPECIAL_16 = [0x0000, 0x8000, 0x3F80, 0xBF80, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x7FFF, 0x0001, 0x8001]
Words = NDArray[np.uint16] | NDArray[np.uint32]


def trained(size: int, rate: float, seed: int = 0) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """bfloat16 words of normal weights before and after a step of one size for each weight, as Adam makes."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.02, size).astype(np.float32)
    moved = weights + (rate * rng.choice([-1, 1], size)).astype(np.float32)
    before, after = ((x.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16) for x in (weights, moved))
    return before.astype(np.uint16), after.astype(np.uint16)


@given(st.data(), st.sampled_from([np.uint16, np.uint32]), st.integers(0, 300))
def test_any_bits_come_back(data: st.DataObject, kind: type[np.uint16], size: int) -> None:
    top = int(np.iinfo(kind).max)
    word = st.integers(0, top) | st.sampled_from(SPECIAL_16)
    old = np.array(data.draw(st.lists(word, min_size=size, max_size=size)), kind)
    new = old.copy()
    for place in data.draw(st.sets(st.integers(0, max(size - 1, 0)), max_size=min(size, 20))):
        if size:
            new[place] = data.draw(word)
    blob = encode_exact(old, new)
    np.testing.assert_array_equal(decode_exact(blob, old), new)
    assert decode_exact(blob, old).dtype == kind


def test_a_slow_decoder_written_from_the_page_reads_the_same() -> None:
    for seed, rate in ((1, 1e-6), (2, 1e-4)):
        old, new = trained(2000, rate, seed)
        np.testing.assert_array_equal(reference_decode(encode_exact(old, new), old.tolist(), 16), new)
    old32, new32 = (np.random.default_rng(seed).integers(0, 2**32, 50, dtype=np.uint32) for seed in (3, 4))
    np.testing.assert_array_equal(reference_decode(encode_exact(old32, new32), old32.tolist(), 32), new32)


def test_the_bytes_of_a_known_pair_stay_what_they_are() -> None:
    old = (np.arange(5000, dtype=np.uint32) * 2654435761 >> np.uint32(16)).astype(np.uint16)
    new = old.copy()
    new[::7] += np.uint16(1)
    new[::11] ^= np.uint16(0x8000)
    blob = encode_exact(old, new)
    assert (len(blob), hashlib.sha256(blob).hexdigest()[:16]) == (1664, "abf7b0fd0993bbb0")


def test_any_number_of_workers_makes_the_same_bytes() -> None:
    old, new = trained(2 * BLOCK + 3, 1e-6)
    blob = encode_exact(old, new)
    assert encode_exact(old, new, workers=3) == blob
    np.testing.assert_array_equal(decode_exact(blob, old, workers=2), new)


def test_a_small_step_takes_a_fraction_of_indices_and_values() -> None:
    old, new = trained(200_000, 1e-6)
    changed = int(np.count_nonzero(old != new))
    assert 0 < len(encode_exact(old, new)) < changed * (4 + 2) // 3


def test_nothing_that_changed_takes_a_few_bytes() -> None:
    old, _ = trained(100_000, 1e-6)
    assert len(encode_exact(old, old)) < 100


@given(st.binary(max_size=60))
def test_bytes_of_another_source_are_refused_or_canonical(blob: bytes) -> None:
    old, _ = trained(40, 1e-6)
    try:
        new = decode_exact(blob, old)
    except FormatError:
        return
    assert encode_exact(old, new) == blob


@pytest.mark.parametrize("cut", [0, 3, 10, -1])
def test_a_torn_delta_is_refused(cut: int) -> None:
    old, new = trained(1000, 1e-5)
    blob = encode_exact(old, new)
    with pytest.raises(FormatError, match="exact delta"):
        decode_exact(blob[:cut], old)
    with pytest.raises(FormatError, match="exact delta has"):
        decode_exact(blob + b"\0", old)


def test_words_of_another_type_or_shape_are_refused() -> None:
    with pytest.raises(InputError, match="not of float32"):
        encode_exact(np.zeros(3, np.float32), np.zeros(3, np.float32))
    with pytest.raises(InputError, match="expected the same"):
        encode_exact(np.zeros(3, np.uint16), np.zeros(4, np.uint16))
