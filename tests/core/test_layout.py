import numpy as np
import pytest

from compeft_core import InputError, LayoutMismatchError, NotFiniteError, Tensor, flatten, layout_of, state_digest, unflatten
from compeft_core.layout import Layout


def test_ternary_tensors_come_first_and_names_are_sorted_by_their_bytes() -> None:
    layout = layout_of({"é": (1,), "b": (2, 3), "a": (4,), "Z": ()}, dense=["a"])
    assert [t.name for t in layout.tensors] == ["Z", "b", "é", "a"]
    assert (layout.size, layout.ternary_size, layout.dense_size) == (12, 8, 4)


def test_the_constructor_refuses_another_order_and_equal_names() -> None:
    a, b = Tensor("a", (1,)), Tensor("b", (1,))
    for tensors in [(b, a), (a, a)]:
        with pytest.raises(InputError):
            Layout(tensors)


def test_the_digest_names_kinds_names_and_shapes() -> None:
    layouts = [layout_of(shapes, dense) for shapes, dense in [({"a": (2, 3)}, []), ({"a": (3, 2)}, []), ({"b": (2, 3)}, [])]]
    digests = {layout.digest for layout in [*layouts, layout_of({"a": (2, 3)}, ["a"])]}
    assert len(digests) == 4
    assert layouts[0].digest.hex() == "bbef9ebe9d0af63ee2e8d22bfea9aaada7bcafdde62f1aadaa8f2cfd5bb96455"


def test_flatten_and_unflatten_are_inverse() -> None:
    layout = layout_of({"a": (2, 3), "s": (), "h": (2,)}, dense=["h"])
    arrays = {"a": np.arange(6.0).reshape(2, 3), "s": np.array(6.0), "h": np.array([7.0, 8.0])}
    vector = flatten(layout, arrays)
    assert vector.tolist() == list(map(float, range(9)))
    assert {name: part.tolist() for name, part in unflatten(layout, vector).items()} == {k: v.tolist() for k, v in arrays.items()}


def test_flatten_refuses_missing_extra_misshapen_and_not_finite_tensors() -> None:
    layout = layout_of({"a": (2,)})
    for arrays in [{}, {"a": np.zeros(2), "b": np.zeros(1)}, {"a": np.zeros((1, 2))}, {"a": np.zeros(1)}]:
        with pytest.raises(LayoutMismatchError):
            flatten(layout, arrays)
    with pytest.raises(NotFiniteError):
        flatten(layout, {"a": np.array([0.0, np.nan])})
    with pytest.raises(LayoutMismatchError):
        unflatten(layout, np.zeros(3, np.float32))


def test_a_state_digest_depends_on_layout_and_values() -> None:
    a, b, zeros = layout_of({"a": (2,)}), layout_of({"b": (2,)}), np.zeros(2, np.float32)
    assert len({state_digest(a, zeros), state_digest(b, zeros), state_digest(a, zeros + 1)}) == 3
