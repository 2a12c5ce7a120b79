"""The border to PEFT, checked on small but real models and on PEFT's own files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from transformers.models.bert.modeling_bert import BertConfig, BertModel

from compeft_client.models.adapter import (
    adapter_arrays,
    check_plain,
    load_adapter,
    rest,
)
from compeft_core.errors import InputError, LayoutMismatchError, NotFiniteError

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft asks transformers

TARGETS = ["query", "value"]


def base() -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
    return BertModel(BertConfig(**sizes), add_pooling_layer=False).eval()


def config(**changes: Any) -> LoraConfig:
    return LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": list(TARGETS)} | changes))


def model(dtype: torch.dtype = torch.float32, **changes: Any) -> PeftModel:
    return get_peft_model(base().to(dtype), config(**changes), autocast_adapter_dtype=False)


def random_arrays(like: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(0)
    return {name: random.normal(0, 0.1, array.shape).astype(np.float32) for name, array in like.items()}


def test_names_and_values_are_those_of_pefts_own_file(tmp_path: Path) -> None:
    tuned = model()
    load_adapter(tuned, random_arrays(adapter_arrays(tuned)))
    tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    ours, pefts = adapter_arrays(tuned), load_file(tmp_path / "adapter_model.safetensors")
    assert set(ours) == set(pefts)
    assert all(np.array_equal(ours[name], pefts[name]) for name in pefts)


def test_arrays_taken_out_are_copies() -> None:
    tuned = model()
    taken = adapter_arrays(tuned)
    for array in taken.values():
        array += 1
    assert not any(np.array_equal(array, taken[name]) for name, array in adapter_arrays(tuned).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_comes_out_goes_in_and_comes_out_again_unchanged(dtype: torch.dtype) -> None:
    tuned = model(dtype)
    load_adapter(tuned, random_arrays(adapter_arrays(tuned)))
    first = adapter_arrays(tuned)
    load_adapter(tuned, first)
    second = adapter_arrays(tuned)
    assert all(array.dtype == np.float32 and np.array_equal(array, second[name]) for name, array in first.items())
    assert all(p.dtype == dtype for name, p in tuned.named_parameters() if "lora_" in name)


def test_values_are_rounded_to_the_models_own_type() -> None:
    tuned = model(torch.bfloat16)
    arrays = {name: np.full_like(array, 1 + 2**-8 + 2**-20) for name, array in adapter_arrays(tuned).items()}
    load_adapter(tuned, arrays)
    assert all((array == 1 + 2**-7).all() for array in adapter_arrays(tuned).values())


def test_what_rests_is_not_trained_and_wakes_up_again() -> None:
    tuned = model()
    trained = lambda: {name for name, p in tuned.named_parameters() if p.requires_grad}  # noqa: E731
    before = trained()
    rest(tuned, [".lora_A.weight"])
    assert trained() == {name for name in before if ".lora_B." in name}
    rest(tuned, [".lora_B.weight"])
    assert trained() == {name for name in before if ".lora_A." in name}
    rest(tuned, [])
    assert trained() == before


def test_a_second_adapter_is_reached_by_its_name() -> None:
    tuned = model()
    tuned.add_adapter("other", config(r=2))
    shapes = {array.shape[0] for name, array in adapter_arrays(tuned, "other").items() if name.endswith("lora_A.weight")}
    assert shapes == {2}
    with pytest.raises(InputError, match="no adapter 'third', it has \\['default', 'other'\\]"):
        adapter_arrays(tuned, "third")


def _missing(arrays: dict[str, Any], name: str) -> None:
    del arrays[name]


def _extra(arrays: dict[str, Any], name: str) -> None:
    arrays["more." + name] = arrays[name]


def _other_shape(arrays: dict[str, Any], name: str) -> None:
    arrays[name] = arrays[name][:1]


def _other_dtype(arrays: dict[str, Any], name: str) -> None:
    arrays[name] = arrays[name].astype(np.float64)


def _not_finite(arrays: dict[str, Any], name: str) -> None:
    arrays[name][0, 0] = np.nan


def _too_large_for_float16(arrays: dict[str, Any], name: str) -> None:
    arrays[name][0, 0] = 1e6


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (_missing, LayoutMismatchError),
        (_extra, LayoutMismatchError),
        (_other_shape, LayoutMismatchError),
        (_other_dtype, LayoutMismatchError),
        (_not_finite, NotFiniteError),
        (_too_large_for_float16, NotFiniteError),
    ],
)
def test_arrays_that_do_not_fit_are_refused_and_change_nothing(spoil: Any, error: type[Exception]) -> None:
    tuned = model(torch.float16)
    before = adapter_arrays(tuned)
    arrays = random_arrays(before)
    spoil(arrays, max(before))
    with pytest.raises(error, match=max(before).replace(".", "\\.")):
        load_adapter(tuned, arrays)
    assert all(np.array_equal(array, before[name]) for name, array in adapter_arrays(tuned).items())


def test_a_parameter_that_is_not_finite_never_leaves() -> None:
    tuned = model()
    next(p for name, p in tuned.named_parameters() if "lora_B" in name).data[0, 0] = torch.inf
    with pytest.raises(NotFiniteError, match=r"lora_B\.weight' holds NaN or infinity"):
        adapter_arrays(tuned)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ],
)
def test_options_that_change_more_than_a_and_b_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=f"the adapter has {field} "):
        check_plain(config(**changes))


def test_another_kind_of_adapter_is_refused() -> None:
    tuned = get_peft_model(base(), IA3Config(target_modules=["query"], feedforward_modules=[]))
    with pytest.raises(InputError, match="adapter is a IA3Config, only LoraConfig is supported"):
        adapter_arrays(tuned)
