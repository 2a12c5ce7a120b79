"""The codec `context`: when it is used, what it gains, and that shapes and segments do not change what is said."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core import (
    Compression,
    InputError,
    Update,
    add_to,
    compress,
    decode,
    densify,
    encode,
    layout_of,
    merge,
    parse,
    shapes_of,
)
from compeft_core.format.context_body import SEGMENT, segments_of
from compeft_core.format.header import Reader
from compeft_core.format.matrix_shapes import read_shapes, write_shapes
from tests.core.format import reference_context
from tests.core.format.test_codec import agree
from tests.core.oracle import same_bits
from tests.core.strategies import gaussian, gaussian_update, rank_one

ADAPTER = layout_of(
    {f"{i}.{side}": (16, 96) if side == "A" else (96, 16) for i in range(4) for side in "AB"} | {"head": (3,)}, ["head"]
)
SHAPES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=90)


def adapter_update(density: float, seed: int = 0) -> Update:
    return compress(ADAPTER, rank_one(ADAPTER, seed), Compression(density))


def by_context(update: Update, shapes: list[tuple[int, int]]) -> bytes:
    return encode(update, codec="context", shapes=shapes)


@pytest.mark.parametrize("density", [0.01, 0.05, 0.2, 0.5, 0.9, 1.0])
def test_both_decoders_agree_and_a_low_rank_update_takes_far_fewer_bytes(density: float) -> None:
    update = adapter_update(density)
    assert agree(update, codec="context", shapes=shapes_of(ADAPTER)) == "context"
    assert len(by_context(update, shapes_of(ADAPTER))) < 0.9 * len(encode(update))


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (1, 1), (63, 64), (64, 65), (65, 65), (130, 20), (3, 5, 40)])
def test_both_decoders_agree_on_matrices_of_any_shape(shape: tuple[int, ...]) -> None:
    layout = layout_of({"a": shape})
    agree(compress(layout, rank_one(layout, 5, noise=0.001), Compression(0.2)), codec="context", shapes=shapes_of(layout))


def test_an_update_without_structure_is_written_by_rice() -> None:
    update = gaussian_update(64 * 64, 0.05)
    assert by_context(update, [(64, 64)]) == encode(update)
    assert parse(by_context(update, [(64, 64)])).shapes == ()


def test_an_update_that_says_too_little_for_its_length_is_written_by_rice() -> None:
    vector = np.zeros(1 << 16, np.float32)
    for kept in (0, 1):
        vector[:kept] = 1
        update = compress(layout_of({"a": (256, 256)}), vector, Compression(1.0))
        assert by_context(update, [(256, 256)]) == encode(update)


def test_a_full_vector_of_one_sign_is_bounded_by_the_least_bytes_an_entry_takes() -> None:
    update = compress(layout_of({"a": (300, 300)}), np.ones(90_000, np.float32), Compression(1.0))
    assert by_context(update, [(300, 300)]) == encode(update)


def test_a_full_context_encoding_works_like_one_by_rice() -> None:
    update = adapter_update(0.1)
    ours, rice = parse(by_context(update, shapes_of(ADAPTER))), parse(encode(update))
    assert (ours.codec, ours.shapes, rice.codec, rice.shapes) == ("context", tuple(shapes_of(ADAPTER)), "rice", ())
    assert (ours.rice, ours.size, ours.count, ours.dense_size) == (rice.blob, rice.size, rice.count, rice.dense_size)
    states = [np.zeros(update.size, np.float32) for _ in range(2)]
    for encoded, state in zip((ours, rice), states, strict=True):
        add_to(encoded, state, 0.7)
    assert same_bits(*states)
    other = parse(encode(adapter_update(0.2, seed=1)))
    for method in ("average", "ties"):
        assert np.allclose(merge(method, [ours, other], [1, 2]), merge(method, [rice, other], [1, 2]))


def test_segments_end_with_the_matrix_that_fills_them() -> None:
    shapes = [(1000, 700), (700, 1000), (5, 5), (2000, 2000), (7, 1)]
    found = [(s.start, s.stop, s.rows.size) for s in segments_of(shapes)]
    assert found == [(0, 1_400_000, 2), (1_400_000, 5_400_025, 2), (5_400_025, 5_400_032, 1)]
    assert [len(s) for s in reference_context.segments_of(shapes)] == [2, 2, 1]
    assert [s.stop for s in segments_of([(SEGMENT, 1), (1, 1)])] == [SEGMENT, SEGMENT + 1]


def test_many_segments_are_the_same_bytes_with_any_number_of_workers() -> None:
    layout = layout_of({f"{i}": (1024, 700) for i in range(5)})
    vector = gaussian(layout.size)
    vector[layout.size // 5 :] *= 0.001
    vector.reshape(5, 1024, 700)[0, :, ::3] *= 8
    vector.reshape(5, 1024, 700)[4, ::5] *= 9000
    update = compress(layout, vector, Compression(0.02))
    blob = by_context(update, shapes_of(layout))
    assert len(segments_of(shapes_of(layout))) == 3
    assert encode(update, codec="context", shapes=shapes_of(layout), workers=2) == blob
    for workers in (1, 2, 9):
        encoded = parse(blob, workers=workers)
        assert encoded.codec == "context"
        assert same_bits(densify(decode(encoded)), densify(update))


def test_shapes_of_another_size_and_an_unknown_codec_are_refused() -> None:
    update = adapter_update(0.1)
    for shapes in ([], [(1, 1)], [(0, 5), (16 * 96 * 8, 1)], [(-1, 5)]):
        with pytest.raises(InputError):
            by_context(update, shapes)
    with pytest.raises(InputError, match="zip"):
        encode(update, codec="zip")


def test_shapes_follow_the_ternary_tensors() -> None:
    layout = layout_of({"a": (), "b": (4,), "c": (2, 3), "d": (2, 3, 5), "e": (0, 7), "f": (9, 9)}, dense=["f"])
    assert shapes_of(layout) == [(1, 1), (4, 1), (2, 3), (2, 15)]


@given(SHAPES)
def test_shapes_are_read_back_and_both_decoders_agree(shapes: list[tuple[int, int]]) -> None:
    size, written = sum(math.prod(shape) for shape in shapes), write_shapes(shapes)
    assert read_shapes(Reader(written), size) == shapes
    assert reference_context.read_shapes(reference_context.Bytes(written), size) == shapes


def test_repeated_layers_take_a_few_bytes() -> None:
    layer = [(16, 384), (384, 16)] * 5 + [(16, 1536), (384, 16)]
    assert len(write_shapes(layer * 32)) < 30
