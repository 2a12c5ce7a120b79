import math

import numpy as np
import pytest
from hypothesis import given

from compeft_core import (
    Compression,
    InputError,
    LayoutMismatchError,
    LimitError,
    NotFiniteError,
    Update,
    add_to,
    compress,
    decode,
    densify,
    encode,
    layout_of,
    parse,
)
from compeft_core.format.golomb import BLOCK
from tests.core.format import reference_decoder
from tests.core.oracle import same_bits
from tests.core.strategies import codings, gaussian_update, updates

DENSITIES = [0.0001, 0.01, 0.05, 0.1, 0.2, 0.499, 0.5, 0.501, 0.7, 0.95, 0.9999, 1.0]


def agree(update: Update, **how: object) -> str:
    """Both decoders read what `encode` writes; returns the codec that was used."""
    blob = encode(update, **how)
    assert same_bits(densify(decode(parse(blob))), densify(update))
    vector = densify(update).tolist()
    second = reference_decoder.decode(blob)
    assert second.ternary_size == update.ternary.size
    assert second.group_ends == update.ternary.group_ends.tolist()
    assert second.entries == {p: vector[p] for p in update.ternary.positions.tolist()}
    assert second.dense == update.dense.tolist()
    assert (second.codec, second.shapes) == (parse(blob).codec, list(parse(blob).shapes))
    assert encode(decode(parse(blob)), codec=second.codec, shapes=second.shapes) == blob
    return second.codec


@given(codings())
def test_decoding_gives_back_what_was_encoded_and_the_reference_decoder_agrees(coding: tuple[Update, dict[str, object]]) -> None:
    agree(coding[0], **coding[1])


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK + 1])
def test_the_reference_decoder_agrees_at_block_edges(size: int, density: float) -> None:
    agree(gaussian_update(size, density, dense=3))


def test_blocks_that_keep_nothing_or_all_are_encoded() -> None:
    vector = np.zeros(3 * BLOCK, np.float32)
    vector[BLOCK : 2 * BLOCK] = -1
    vector[-1] = 2
    agree(compress(layout_of({"a": vector.shape}), vector, Compression(1.0)))


def test_one_far_entry_is_encoded_with_a_long_run_of_zeros() -> None:
    for last in (100, 200, 65_000):
        vector = np.zeros(BLOCK, np.float32)
        vector[:40], vector[last] = 1, 1
        agree(compress(layout_of({"a": vector.shape}), vector, Compression(1.0)))


def test_many_scale_groups_within_and_across_blocks() -> None:
    layout = layout_of({f"t{i:03}": (700,) for i in range(200)})
    vector = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32)
    agree(compress(layout, vector, Compression(0.03, granularity="tensor")))


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("size", [500_000, 663_552])
def test_a_gaussian_vector_takes_at_most_1_012_of_its_entropy(size: int, density: float) -> None:
    bits = -(1 - density) * math.log2(1 - density) - density * math.log2(density / 2)
    assert 8 * len(encode(gaussian_update(size, density))) <= 1.012 * bits * size


def test_a_full_vector_takes_its_signs_only() -> None:
    assert len(encode(gaussian_update(10 * BLOCK, 1.0))) < 10 * BLOCK // 8 + 80


def test_the_number_of_workers_does_not_change_a_byte() -> None:
    update = gaussian_update(7 * BLOCK + 5, 0.05, dense=9)
    blob = encode(update)
    for workers in (2, 3, 50):
        assert encode(update, workers=workers) == blob
        encoded = parse(blob, workers=workers)
        assert same_bits(densify(decode(encoded, workers=workers)), densify(update))
        state = np.ones(update.size, np.float32)
        add_to(encoded, state, workers=workers)
        assert same_bits(state, np.float32(1) + densify(update))


@given(updates())
def test_adding_with_weight_one_adds_exactly_what_was_compressed(update: Update) -> None:
    state = np.linspace(-1, 1, update.size, dtype=np.float32)
    expected = state + densify(update)
    add_to(parse(encode(update)), state)
    assert same_bits(state, expected)


def test_adding_with_a_weight_rounds_each_product_once() -> None:
    update = gaussian_update(70_000, 0.3, dense=5)
    state = np.zeros(update.size, np.float32)
    add_to(parse(encode(update)), state, 0.3)
    assert np.array_equal(state, (0.3 * densify(update).astype(np.float64)).astype(np.float32))


def test_adding_to_a_state_of_another_length_or_kind_is_refused_and_changes_nothing() -> None:
    encoded = parse(encode(gaussian_update(100, 0.5)))
    with pytest.raises(LayoutMismatchError):
        add_to(encoded, np.zeros(99, np.float32))
    frozen = np.zeros(100, np.float32)
    frozen.flags.writeable = False
    for state in (np.zeros(100), np.zeros(200, np.float32)[::2], frozen):
        with pytest.raises(InputError):
            add_to(encoded, state)
    state = np.zeros(100, np.float32)
    for weight in (math.nan, math.inf, 1e39):
        with pytest.raises(NotFiniteError):
            add_to(encoded, state, weight)
    assert not state.any()


def test_an_encoding_says_what_it_holds() -> None:
    update = gaussian_update(2 * BLOCK, 0.1, dense=4)
    encoded = parse(memoryview(encode(update)))
    assert (encoded.size, encoded.ternary_size, encoded.dense_size) == (2 * BLOCK + 4, 2 * BLOCK, 4)
    assert (encoded.count, encoded.blocks, encoded.blob) == (update.ternary.count, 2, encode(update))
    with pytest.raises(ValueError, match="read-only"):
        encoded.block_starts[0] = 0


def test_a_size_above_the_callers_cap_is_refused() -> None:
    blob = encode(gaussian_update(100, 0.5, dense=1))
    assert parse(blob, max_size=101).size == 101
    with pytest.raises(LimitError):
        parse(blob, max_size=100)


def test_fewer_than_one_worker_is_refused() -> None:
    with pytest.raises(InputError):
        encode(gaussian_update(10, 0.5), workers=0)
