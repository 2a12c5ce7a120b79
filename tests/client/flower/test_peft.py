"""PEFT helpers of the Flower wing: arrays out and in, and the origin by which a site with another model is refused."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel

from compeft_client.checkpoints.base_model_digest import model_weights_digest, weights_digest
from compeft_client.flower.peft import arrays_of, load, origin_of
from compeft_core.errors import InputError, LayoutMismatchError
from tests.examples.language_rounds import app_of
from tests.rounds.adapter_rounds import adapted, llama


def lora(rank: int = 2, **settings: object) -> LoraConfig:
    return LoraConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)  # type: ignore[arg-type]  # any field


def model(rank: int = 2, **settings: object) -> PeftModel:
    return adapted(llama(), lora(rank, **settings))


def test_arrays_go_out_of_one_model_and_into_another() -> None:
    one, other = model(), model()
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    load(other, arrays_of(one))
    for name, array in arrays_of(other).items():
        np.testing.assert_array_equal(array.numpy(), arrays_of(one)[name].numpy())


def test_bfloat16_arrays_come_back_to_the_bit() -> None:
    one = model().to(torch.bfloat16)
    arrays = arrays_of(one)
    assert {array.dtype for array in arrays.values()} == {"float32"}
    other = adapted(llama(), lora()).to(torch.bfloat16)
    load(other, arrays)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_another_rank_is_named_and_nothing_is_loaded() -> None:
    other = model(rank=4)
    before = {name: array.numpy().copy() for name, array in arrays_of(other).items()}
    with pytest.raises(
        LayoutMismatchError, match=r"lora_A.weight' is \(2, 32\) in the expert and \(4, 32\) in this model: the rank"
    ):
        load(other, arrays_of(model()))
    for name, array in arrays_of(other).items():
        np.testing.assert_array_equal(array.numpy(), before[name])


def test_a_missing_and_an_unknown_array_are_named() -> None:
    arrays = dict(arrays_of(model()))
    name = next(iter(arrays))
    with pytest.raises(LayoutMismatchError, match="this model has and the expert lacks it"):
        load(model(), {n: a for n, a in arrays.items() if n != name})
    with pytest.raises(LayoutMismatchError, match="'more': the expert has and this model lacks it"):
        load(model(), arrays | {"more": arrays[name]})


def test_an_adapter_that_the_model_lacks_is_named() -> None:
    with pytest.raises(InputError, match="model has no adapter 'berlin', it has default"):
        arrays_of(model(), ["berlin"])


def test_the_origin_is_that_of_the_base_model_before_the_adapter_was_put_in() -> None:
    assert origin_of(model()).base_model_digest == model_weights_digest(llama())
    assert origin_of(model(modules_to_save=["lm_head"])).base_model_digest == model_weights_digest(llama())
    assert origin_of(model(trainable_token_indices=[1])).base_model_digest == model_weights_digest(llama())


def test_the_origin_of_a_stored_base_is_that_of_its_files_in_whatever_type_it_was_loaded(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    origins = []
    for folder in (tmp_path / "here", tmp_path / "there"):
        llama().to(torch.bfloat16).save_pretrained(folder)
        for dtype in (torch.float32, torch.bfloat16):
            base = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
            origins.append(origin_of(adapted(base, lora())))
    assert len(set(origins)) == 1, "neither the type in memory nor the folder's path is part of it"
    assert origins[0].base_model_digest == weights_digest(tmp_path / "here")
    assert origins[0].base_model == ""


def test_tokenizer_and_chat_template_are_part_of_the_origin_and_padding_is_not() -> None:
    with app_of("plain"):
        from language.model import tiny  # type: ignore[import-not-found]  # the app is on the path here only

        _, tokenizer = tiny()
    one = origin_of(model(), tokenizer)
    padded = copy.deepcopy(tokenizer)
    padded.padding_side = "left"
    padded.model_max_length = 7
    assert origin_of(model(), padded) == one
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<new>"])
    assert origin_of(model(), other).tokenizer_digest != one.tokenizer_digest
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ messages }}"
    found = origin_of(model(), other)
    assert found.chat_template_digest != one.chat_template_digest
    assert found.tokenizer_digest == one.tokenizer_digest
