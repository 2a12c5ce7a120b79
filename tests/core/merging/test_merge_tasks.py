"""EMR: one vector for all tasks, and what gives each task its own back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core import (
    Compression,
    NotFiniteError,
    Specialised,
    compress,
    decode,
    densify,
    elect_mask_rescale,
    encode,
    layout_of,
    merge,
    parse,
)
from tests.core.oracle import same_bits
from tests.core.strategies import VALUES, settings

LAYOUT = layout_of({"a": (6, 5), "b": (7,), "head": (2,)}, dense=["head"])


@given(st.data())
def test_a_task_is_its_mask_of_the_unified_vector_with_its_own_mean_magnitude(data: st.DataObject) -> None:
    vectors = data.draw(st.lists(st.lists(VALUES, min_size=LAYOUT.size, max_size=LAYOUT.size), min_size=1, max_size=4))
    encodings = [parse(encode(compress(LAYOUT, np.array(v, np.float32), data.draw(settings)))) for v in vectors]
    unified = merge("emr", encodings, [1.0] * len(encodings))
    shared = unified[: LAYOUT.ternary_size].astype(np.float64)
    for e, task in zip(encodings, elect_mask_rescale(encodings, [1.0] * len(encodings), unified), strict=True):
        assert task is not None
        own = densify(decode(e))[: LAYOUT.ternary_size].astype(np.float64)
        mask = np.sign(own) * np.sign(shared) > 0
        masked = np.abs(shared[mask]).sum()
        rescale = np.abs(own).sum() / masked if masked else 0.0
        assert task.rescale == pytest.approx(rescale, rel=1e-12)
        expected = np.where(mask, rescale * shared, 0.0).astype(np.float32)
        np.testing.assert_allclose(task.vector(unified)[: LAYOUT.ternary_size], expected, rtol=1e-6)
        np.testing.assert_array_equal(task.vector(unified)[LAYOUT.ternary_size :], e.dense)


def test_a_task_alone_gets_itself_back() -> None:
    update = compress(LAYOUT, np.arange(LAYOUT.size, dtype=np.float32) - 11, Compression(0.5))
    unified = merge("emr", [parse(encode(update))], [1.0])
    (task,) = elect_mask_rescale([parse(encode(update))], [1.0], unified)
    assert task is not None
    assert task.rescale == 1.0
    assert same_bits(task.vector(unified), densify(update))


def test_a_task_without_weight_has_no_mask() -> None:
    encoding = parse(encode(compress(LAYOUT, np.ones(LAYOUT.size, np.float32), Compression(0.5))))
    unified = merge("emr", [encoding, encoding], [1.0, 0.0])
    assert elect_mask_rescale([encoding, encoding], [1.0, 0.0], unified)[1] is None


def test_a_task_beyond_float32_is_refused() -> None:
    task = Specialised(np.zeros(1, np.uint32), 10.0, np.zeros(0, np.float32))
    with pytest.raises(NotFiniteError):
        task.vector(np.full(1, 1e38, np.float32))
