"""What is computed on a device has the bytes that core computes, whatever the vector. On CPU tensors always, on CUDA where there is one."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compeft_client.models import device_codec as device_module
from compeft_client.models.device_codec import apply_on_device, compress_on_device, flatten_on_device
from compeft_client.models.device_selection import span_sums
from compeft_core import (
    SCALE_RULES,
    CompeftError,
    Compression,
    Encoded,
    InputError,
    Layout,
    LayoutMismatchError,
    NotFiniteError,
    Ternary,
    Update,
    add_to,
    compress,
    encode,
    flatten,
    layout_of,
    parse,
    shapes_of,
)
from compeft_core.selection import spans_of
from tests.core.oracle import fixed_sum
from tests.core.strategies import gaussian, problems, updates

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FLAT = Compression(0.05)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors: more threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def on(device: str, vector: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(vector).to(device, dtype)


def by_core(layout: Layout, tensor: torch.Tensor, how: Compression) -> bytes:
    return encode(compress(layout, tensor.float().cpu().numpy(), how))


def check_compress(layout: Layout, tensor: torch.Tensor, how: Compression) -> Encoded:
    expected = by_core(layout, tensor, how)
    assert compress_on_device(layout, tensor, how) == expected
    return parse(expected)


def check_apply(encoded: Encoded, state: np.ndarray, weight: float, device: str) -> None:
    tensor, expected = on(device, state), state.copy()
    add_to(encoded, expected, weight)
    apply_on_device(encoded, tensor, weight)
    assert tensor.cpu().numpy().tobytes() == expected.tobytes()


def check_both(size: int, how: Compression, vector: np.ndarray, device: str) -> None:
    encoded = check_compress(layout_of({"a": (size,)}), on(device, vector), how)
    check_apply(encoded, gaussian(size, seed=1), 1.0, device)


@on_each_device
@given(problem=problems(), dtype=st.sampled_from(DTYPES))
@settings(deadline=None)
def test_compressing_gives_the_bytes_of_core(
    device: str, problem: tuple[Layout, np.ndarray, Compression], dtype: torch.dtype
) -> None:
    layout, vector, how = problem
    check_compress(layout, on(device, vector, dtype), how)


@on_each_device
@given(update=updates(), weight=st.sampled_from([1.0, 0.0, -0.0, 0.37, -2.5, 1e-38, 1e-45]), data=st.data())
@settings(deadline=None)
def test_adding_gives_the_state_of_core(device: str, update: Update, weight: float, data: st.DataObject) -> None:
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 3e38]) | st.floats(width=32, allow_nan=False)
    state = data.draw(st.lists(values, min_size=update.size, max_size=update.size))
    check_apply(parse(encode(update)), np.array(state, np.float32), weight, device)


@on_each_device
@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 131_072])
@pytest.mark.parametrize("density", [0.00001, 0.01, 0.3, 0.5, 0.500004, 0.8, 1.0])
def test_blocks_end_where_those_of_core_do(device: str, size: int, density: float) -> None:
    check_both(size, Compression(density), gaussian(size), device)


@on_each_device
@pytest.mark.parametrize("rule", SCALE_RULES)
@pytest.mark.parametrize("granularity", ["vector", "tensor"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_are_those_of_core(device: str, rule: str, granularity: str, dtype: torch.dtype) -> None:
    sizes = {
        "a": (70_000,),
        "b": (1,),
        "c": (3, 50),
        "d": (66_000,),
        "e": (0,),
        "f": (255,),
        "g": (256,),
        "h": (257,),
        "i": (131_072,),
    }
    layout = layout_of(sizes, dense=["c"])
    how = Compression(density=0.1, scale=rule, factor=1.5, granularity=granularity)
    encoded = check_compress(layout, on(device, gaussian(layout.size), dtype), how)
    check_apply(encoded, gaussian(layout.size, seed=1), 0.3, device)


@on_each_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("squared", [False, True])
def test_sums_are_added_in_the_fixed_order_to_the_last_bit_of_float64(device: str, squared: bool, dtype: torch.dtype) -> None:
    sizes = [300, 255, 65_536, 1, 70_000, 256]
    tensor = on(device, gaussian(sum(sizes)) * 10.0 ** np.linspace(-3, 3, sum(sizes), dtype=np.float32), dtype)
    groups = np.split(tensor.double().cpu().numpy(), np.cumsum(sizes)[:-1])
    spans = spans_of(np.cumsum(sizes))
    totals = spans.total(span_sums(tensor, spans, squared=squared), len(sizes))
    assert totals.tolist() == [fixed_sum(group * group if squared else group) for group in groups]


@on_each_device
@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("density", [0.0005, 0.05, 0.98])
@pytest.mark.parametrize("kind", ["gaussian", "sparse", "few values", "sorted", "periodic", "tiny between"])
def test_selection_is_exact_whether_the_sample_guesses_well_or_not(
    device: str, kind: str, density: float, dtype: torch.dtype
) -> None:
    vector = gaussian(4 * 65_536 + 12_345)
    if kind == "sparse":
        vector[np.abs(vector) < 1.5] = 0
    elif kind == "few values":
        vector = np.round(vector)
    elif kind == "sorted":
        vector.sort()
    elif kind == "periodic":
        vector[::4] *= 1000
    elif kind == "tiny between":
        vector[np.arange(vector.size) % 4 > 0] = 1e-45
    check_compress(layout_of({"a": vector.shape}), on(device, vector, dtype), Compression(density))


@on_each_device
@pytest.mark.parametrize("density", [0.02, 0.6])
def test_any_number_of_blocks_at_a_time_gives_the_same_bytes(
    device: str, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "CHUNK", 2)
    layout = layout_of({"a": (150_000,), "b": (170_001,), "h": (3,)}, dense=["h"])
    encoded = check_compress(layout, on(device, gaussian(layout.size)), Compression(density, granularity="tensor"))
    check_apply(encoded, gaussian(layout.size, seed=1), 1.0, device)


@on_each_device
@pytest.mark.parametrize(
    "places", [[], [0], [65_535], [70_000], [199_999], [*range(40_000), 65_535], [*range(1000), *range(64_000, 66_000)]]
)
def test_long_gaps_empty_blocks_and_runs_are_packed_as_by_core(device: str, places: list[int]) -> None:
    vector = np.zeros(200_000, np.float32)
    vector[places] = np.where(np.array(places) % 3, 2.0, -2.0) if places else 0
    check_both(vector.size, Compression(1.0), vector, device)


@on_each_device
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_blocks_that_keep_everything_are_only_signs(device: str, sign: float) -> None:
    check_both(65_600, Compression(1.0), np.full(65_600, sign, np.float32), device)


@on_each_device
@pytest.mark.parametrize("scale", [1e-45, 1e-39, 1e30])
@pytest.mark.parametrize("rule", SCALE_RULES)
def test_tiny_and_huge_values_keep_what_core_keeps(device: str, scale: float, rule: str) -> None:
    vector = (np.round(gaussian(3000) * 3) * scale).astype(np.float32)
    for factor in (1.0, 1e6):
        how = Compression(0.2, rule, factor)
        check_compress(layout_of({"a": (3000,)}), on(device, vector), how)


@on_each_device
def test_the_dense_part_is_rounded_as_by_core(device: str) -> None:
    edges = [0x3F808000, 0x3F818000, 0x3F808001, 0x00008000, 0x00018000, 0x80000000, 0x80000001, 0x7F7F7FFF, 0xFF7F0000]
    vector = np.array(edges, np.uint32).view(np.float32)
    layout = layout_of({"h": vector.shape}, dense=["h"])
    check_apply(check_compress(layout, on(device, vector), FLAT), np.ones(vector.size, np.float32), 0.5, device)


@on_each_device
def test_an_update_by_another_codec_is_added_too(device: str) -> None:
    layout = layout_of({"a": (300, 200)})
    update = compress(layout, np.outer(gaussian(300), gaussian(200, seed=1)).reshape(-1), FLAT)
    encoded = parse(encode(update, codec="context", shapes=shapes_of(layout)))
    assert encoded.codec == "context"
    check_apply(encoded, gaussian(layout.size, seed=1), 1.0, device)
    check_apply(parse(encode(update, codec="rice4")), gaussian(layout.size, seed=1), 1.0, device)


@on_each_device
def test_an_empty_layout_gives_an_empty_update(device: str) -> None:
    empty = layout_of({})
    check_apply(check_compress(empty, torch.empty(0, device=device), FLAT), np.zeros(0, np.float32), 1.0, device)


@on_each_device
def test_a_strided_vector_and_one_with_a_gradient_are_read_and_left_as_they_are(device: str) -> None:
    vector = on(device, gaussian(2000)).requires_grad_()
    check_compress(layout_of({"a": (1000,)}), vector.detach()[::2], FLAT)
    assert compress_on_device(layout_of({"a": (2000,)}), vector, FLAT) == by_core(
        layout_of({"a": (2000,)}), vector.detach(), FLAT
    )
    assert vector.detach().cpu().numpy().tobytes() == gaussian(2000).tobytes()


@on_each_device
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused(device: str, value: float, dtype: torch.dtype, place: int) -> None:
    layout, vector = layout_of({"a": (1,), "h": (1,)}, dense=["h"]), np.ones(2, np.float32)
    vector[place] = value
    with pytest.raises(NotFiniteError):
        compress_on_device(layout, on(device, vector, dtype), FLAT)


@on_each_device
@pytest.mark.parametrize("bits", [0xFFFFFFFF, 0x7F7F8000])
def test_a_dense_parameter_beyond_bfloat16_is_refused(device: str, bits: int) -> None:
    vector = np.array([bits], np.uint32).view(np.float32)
    with pytest.raises(NotFiniteError, match="bfloat16"):
        compress_on_device(layout_of({"h": (1,)}, dense=["h"]), on(device, vector), FLAT)


@on_each_device
def test_a_scale_beyond_float32_is_refused(device: str) -> None:
    with pytest.raises(NotFiniteError, match="factor"):
        compress_on_device(layout_of({"a": (2,)}), on(device, np.full(2, 3e38, np.float32)), Compression(1.0, factor=2.0))


@on_each_device
@pytest.mark.parametrize(
    ("size", "dtype", "error"),
    [(4, torch.float32, LayoutMismatchError), (3, torch.float64, InputError), (3, torch.int32, InputError)],
)
def test_a_vector_of_another_length_or_type_is_refused(
    device: str, size: int, dtype: torch.dtype, error: type[CompeftError]
) -> None:
    with pytest.raises(error):
        compress_on_device(layout_of({"a": (3,)}), torch.zeros(size, dtype=dtype, device=device), FLAT)


@on_each_device
@pytest.mark.parametrize(
    ("state", "weight", "error"),
    [
        (torch.zeros(5), 1.0, LayoutMismatchError),
        (torch.zeros(2, 2), 1.0, LayoutMismatchError),
        (torch.zeros(4).bfloat16(), 1.0, InputError),
        (torch.zeros(8)[::2], 1.0, InputError),
        (torch.zeros(4), float("nan"), NotFiniteError),
        (torch.zeros(4), 1e38, NotFiniteError),
        (torch.zeros(4), -1e38, NotFiniteError),
    ],
)
@pytest.mark.parametrize("dense", [[], ["b"], ["a", "b"]])
def test_a_state_or_weight_that_does_not_fit_is_refused_and_nothing_written(
    device: str, state: torch.Tensor, weight: float, error: type[CompeftError], dense: list[str]
) -> None:
    layout = layout_of({"a": (2,), "b": (2,)}, dense)
    encoded = parse(encode(compress(layout, np.full(4, 64, np.float32), Compression(1.0))))
    moved = torch.empty_strided(state.shape, state.stride(), dtype=state.dtype, device=device).zero_()
    with pytest.raises(error):
        apply_on_device(encoded, moved, weight)
    assert not moved.any()


@on_each_device
def test_a_parameter_is_updated_in_place_and_stays_a_leaf(device: str) -> None:
    state = on(device, np.zeros(3, np.float32)).requires_grad_()
    one = Ternary(3, np.array([1], np.uint32), np.array([True]), np.array([3], np.int64), np.array([2], np.float32))
    apply_on_device(parse(encode(Update(one, np.zeros(0, np.float32)))), state)
    assert state.tolist() == [0.0, -2.0, 0.0]
    assert state.is_leaf


@on_each_device
def test_tensors_are_laid_out_as_by_core(device: str) -> None:
    layout = layout_of({"b": (2, 3), "a": (4,), "h": (), "z": (0, 5)}, dense=["h"])
    arrays = {t.name: gaussian(t.size, seed).reshape(t.shape) for seed, t in enumerate(layout.tensors)}
    flat = flatten_on_device(layout, {name: on(device, array) for name, array in arrays.items()})
    assert flat.device.type == device
    assert flat.cpu().numpy().tobytes() == flatten(layout, arrays).tobytes()


@pytest.mark.parametrize(
    ("dtypes", "flat"), [(DTYPES[:2], torch.float32), (DTYPES[1:], torch.float32), ([torch.float16] * 2, torch.float16)]
)
def test_tensors_of_several_types_become_float32(dtypes: list[torch.dtype], flat: torch.dtype) -> None:
    tensors = {"a": torch.tensor([1.5]).to(dtypes[0]), "b": torch.tensor([2.0**-20]).to(dtypes[1])}
    vector = flatten_on_device(layout_of({"a": (1,), "b": (1,)}), tensors)
    assert (vector.dtype, vector.tolist()) == (flat, [1.5, 2.0**-20])


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({"a": torch.zeros(2)}, LayoutMismatchError),
        ({"a": torch.zeros(2), "b": torch.zeros(1), "c": torch.zeros(1)}, LayoutMismatchError),
        ({"a": torch.zeros(2, 1), "b": torch.zeros(1)}, LayoutMismatchError),
        ({"a": torch.zeros(2), "b": torch.zeros(1).double()}, InputError),
        ({"a": torch.zeros(2), "b": torch.zeros(1, device="meta")}, InputError),
    ],
)
def test_tensors_that_do_not_fit_the_layout_are_refused(tensors: dict[str, torch.Tensor], error: type[CompeftError]) -> None:
    with pytest.raises(error):
        flatten_on_device(layout_of({"a": (2,), "b": (1,)}), tensors)
