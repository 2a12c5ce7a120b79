"""Shares, masks, packing, quantising, supports and graphs: each against its definition, with vectors."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core.errors import FormatError, InputError
from compeft_core.secure_sum.graph import COMPLETE, degree, neighbours_of, threshold
from compeft_core.secure_sum.masks import mask_of, pack, packed_bytes, unpack
from compeft_core.secure_sum.quantise import Quantiser, shared_support
from compeft_core.secure_sum.shamir import PRIME, join, lagrange, split
from tests.core.secure_sum.world import ids_of


def counted(number: int) -> bytes:
    """Bytes that are not random, for vectors."""
    return hashlib.shake_256(b"vector").digest(number)


def test_the_modulus_is_the_smallest_prime_above_2_256() -> None:
    def probably_prime(n: int) -> bool:
        return all(pow(base, n - 1, n) == 1 for base in (2, 3, 5, 7, 11, 13))

    assert probably_prime(PRIME)
    assert not any(probably_prime(n) for n in range(2**256 + 1, PRIME, 2))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 7), st.integers(0, 5), st.randoms(use_true_random=False))
def test_threshold_shares_give_the_secret_and_one_less_does_not(secret: bytes, needed: int, more: int, rng) -> None:
    places = list(range(1, needed + more + 1))
    shares = dict(zip(places, split(secret, needed, places, rng.randbytes), strict=True))
    chosen = rng.sample(places, needed)
    assert join({place: shares[place] for place in chosen}) == secret
    assert join({place: shares[place] for place in chosen}, lagrange(chosen)) == secret
    if needed > 1:
        assert join({place: shares[place] for place in chosen[1:]}) != secret


def test_shares_are_those_of_the_vector() -> None:
    shares = split(bytes(range(32)), 3, [1, 2, 3, 4], counted)
    assert [share.hex()[:16] for share in shares] == SHARES


def test_shares_that_cannot_be_made_or_joined_are_refused() -> None:
    for secret, needed, places in ((bytes(31), 1, [1]), (bytes(32), 3, [1, 2]), (bytes(32), 1, [0, 1]), (bytes(32), 1, [1, 1])):
        with pytest.raises(InputError):
            split(secret, needed, places, counted)
    with pytest.raises(InputError):
        join({1: bytes(32)})


@given(st.integers(1, 32), st.integers(0, 300), st.integers(0, 99))
def test_words_come_back_from_their_packed_form(bits: int, count: int, seed: int) -> None:
    words = mask_of(seed.to_bytes(32, "big"), count) & np.uint32(2**bits - 1)
    data = pack(words, bits)
    assert len(data) == packed_bytes(count, bits)
    np.testing.assert_array_equal(unpack(data, count, bits), words)


def test_packing_goes_on_over_pieces_and_refuses_bits_and_bytes_that_do_not_belong() -> None:
    words = mask_of(bytes(32), 2**16 + 77) & np.uint32(2**19 - 1)
    np.testing.assert_array_equal(unpack(pack(words, 19), words.size, 19), words)
    assert pack(np.array([1, 2, 3], np.uint32), 3).hex() == "2980"
    for data in (b"\x29", b"\x29\x80\x00", b"\x29\x81"):
        with pytest.raises(FormatError):
            unpack(data, 3, 3)
    with pytest.raises(InputError):
        pack(words, 33)


def test_masks_are_those_of_the_vector() -> None:
    assert mask_of(bytes(32), 3).tolist() == MASK


@given(st.integers(2, 12), st.integers(1, 200), st.integers(0, 50))
def test_quantised_values_are_right_in_the_mean_and_their_sum_is_exact(bits: int, clients: int, seed: int) -> None:
    quantiser = Quantiser(0.5, bits, clients)
    rng = np.random.default_rng(seed)
    values = [rng.uniform(-0.6, 0.6, 20).astype(np.float32) for _ in range(min(clients, 5))]
    words = [quantiser.words(v, rng.bytes(32)) for v in values]
    total = quantiser.total(sum(words), len(words))
    np.testing.assert_array_equal(total, sum(w.view(np.int32).astype(np.int64) for w in words))
    exact = np.mean([np.clip(v, -0.5, 0.5) for v in values], axis=0)
    assert np.abs(quantiser.mean(total, len(words)) - exact).max() <= quantiser.step * 1.001
    packed = [unpack(pack(w, quantiser.bits), 20, quantiser.bits) for w in words]
    np.testing.assert_array_equal(quantiser.total(sum(packed), len(words)), total)


def test_random_rounding_has_the_value_as_its_mean() -> None:
    quantiser = Quantiser(1.0, 3, 2)
    values = np.full(40_000, 0.4, np.float32)
    found = quantiser.mean(quantiser.total(quantiser.words(values, b"\x05" * 32), 1), 1)
    assert abs(float(found.mean()) - 0.4) < 0.005


def test_a_sum_out_of_range_is_refused_and_impossible_quantisers_are() -> None:
    quantiser = Quantiser(1.0, 8, 4)
    with pytest.raises(FormatError, match="a client masked its vector with other keys"):
        quantiser.total(mask_of(bytes(32), 64), 4)
    for wrong in ((0.0, 8, 4), (1.0, 1, 4), (1.0, 21, 4), (1.0, 8, 0), (math.nan, 8, 4), (1.0, 20, 1000)):
        with pytest.raises(InputError):
            Quantiser(*wrong)


@given(st.integers(1, 300), st.data())
def test_a_support_has_the_last_step_and_random_positions_and_is_the_same_for_all(size: int, data) -> None:
    count = data.draw(st.integers(1, size))
    step = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=count))), np.uint32)
    found = shared_support(step, size, count, bytes(32))
    assert found.size == count
    assert (np.diff(found.astype(np.int64)) > 0).all()
    assert np.isin(step, found).all()
    np.testing.assert_array_equal(found, shared_support(step, size, count, bytes(32)))


def test_supports_of_other_seeds_cover_the_vector_evenly() -> None:
    none = np.empty(0, np.uint32)
    seen = np.zeros(1000)
    for number in range(200):
        seen[shared_support(none, 1000, 100, number.to_bytes(32, "big"))] += 1
    assert seen.sum() == 20_000
    assert 5 < seen.min() < seen.max() < 45
    with pytest.raises(InputError):
        shared_support(np.arange(5, dtype=np.uint32), 10, 4, bytes(32))


@pytest.mark.parametrize("count", [3, 10, 100, 101, 500])
def test_neighbours_are_mutual_and_as_many_as_the_degree_says(count: int) -> None:
    graph = neighbours_of(ids_of(count), bytes(32))
    assert {len(near) for near in graph.values()} == {degree(count)}
    assert all(each in graph[other] and each != other for each, near in graph.items() for other in near)
    assert graph == neighbours_of(reversed(ids_of(count)), bytes(32))
    assert (degree(count) == count - 1) == (count <= max(COMPLETE, degree(count) + 1))
    assert 2 * threshold(degree(count)) > degree(count)
    if degree(count) < count - 1:
        assert graph != neighbours_of(ids_of(count), b"\x01" * 32)


SHARES = ["007176f964a362a7", "005462e827e21de9", "00a8c4ce4cc036cd", "006e9cabd33dad52"]
MASK = [236907004, 1006949928, 1329771642]
