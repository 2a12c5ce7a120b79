"""Every method of the installed PEFT: packed, never larger than what was saved, and back as PEFT needs it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, ShiraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.numpy import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from compeft_client.packing.diff import diff
from compeft_client.packing.expert_file import open_expert
from compeft_client.packing.pack import PackSettings, save_compressed, unpack

pytestmark = pytest.mark.filterwarnings("ignore")
ADAPTER = "adapter_model.safetensors"
VIRTUAL: dict[str, Any] = {"num_virtual_tokens": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1, "target_modules": "self_attn"},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "CARTRIDGE": VIRTUAL | {"num_frozen_tokens": 1},
    "CPT": {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "FOURIERFT": {"n_frequency": 1500},
    "IA3": {"feedforward_modules": ["v_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MULTITASK_PROMPT_TUNING": VIRTUAL | {"num_tasks": 2},
    "OFT": {"oft_block_size": 4},
    "PREFIX_TUNING": VIRTUAL,
    "PROMPT_TUNING": VIRTUAL,
    "P_TUNING": VIRTUAL | {"encoder_hidden_size": 16},
    "SHIRA": {"r": 16},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2], "target_modules": ["embed_tokens"]},
    "UNILORA": {"theta_d_length": 3000},
    "VBLORA": {"num_vectors": 8, "vector_length": 16},
}
NOT_ALONE = {"XLORA"}
"""Methods that only combine saved adapters."""


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=100, use_cache=False, **sizes)).eval()


def saved(config: Any, folder: Path) -> Path:
    """An adapter of random values, which no coder makes small without loss."""
    model = get_peft_model(llama(), config)
    torch.manual_seed(1)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def config_of(kind: str) -> Any:
    made = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    options = {"target_modules": ["q_proj", "v_proj"]} if "target_modules" in made.__dataclass_fields__ else {}
    return made(task_type="CAUSAL_LM", **(options | OPTIONS.get(kind, {})))


@pytest.mark.parametrize("kind", sorted({k.value for k in PEFT_TYPE_TO_CONFIG_MAPPING} - NOT_ALONE))
def test_a_file_of_any_method_is_never_larger_than_what_was_saved(kind: str, tmp_path: Path) -> None:
    folder = saved(config_of(kind), tmp_path / "a")
    stored = sum((folder / name).stat().st_size for name in (ADAPTER, "adapter_config.json"))
    before = load_file(folder / ADAPTER)
    (folder / "README.md").unlink(missing_ok=True)
    for settings in (PackSettings(), PackSettings(density=1.0)):
        made = save_compressed(folder, tmp_path / "a.expert", settings, force=True)
        unpack(tmp_path / "a.expert", tmp_path / "back", force=True)
        after = load_file(tmp_path / "back" / ADAPTER)
        assert made.total_bytes <= stored + 200
        assert {n: (t.dtype, t.shape) for n, t in after.items()} == {n: (t.dtype, t.shape) for n, t in before.items()}
        for name, tensor in before.items():
            if tensor.dtype.kind != "f":
                np.testing.assert_array_equal(after[name], tensor)
    assert (tmp_path / "back" / "adapter_config.json").read_bytes() == (folder / "adapter_config.json").read_bytes()


def updates(directory: Path) -> dict[str, torch.Tensor]:
    model = PeftModel.from_pretrained(llama(), directory)
    return {n: m.get_delta_weight("default").detach() for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}


@pytest.mark.parametrize(
    "config",
    [
        LoHaConfig(r=6, alpha=3, target_modules=["q_proj", "up_proj"]),
        LoKrConfig(r=2, alpha=4, decompose_both=True, decompose_factor=8, target_modules=["q_proj", "up_proj"]),
        LoKrConfig(r=3, alpha=4, decompose_factor=2, target_modules=["q_proj", "up_proj"]),
    ],
    ids=["loha", "lokr of two products", "lokr of one product"],
)
def test_products_of_loha_and_lokr_keep_what_peft_adds(config: Any, tmp_path: Path) -> None:
    folder = saved(config, tmp_path / "a")
    tensors = load_file(folder / ADAPTER)
    for name, tensor in tensors.items():
        if name.endswith("_a"):
            tensor *= (0.4 ** np.arange(tensor.shape[1])).astype(np.float32)
    save_file(tensors, folder / ADAPTER, {"format": "pt"})
    save_compressed(folder, tmp_path / "a.expert", PackSettings(quality=0.99))
    assert any(part.slices is not None for part in open_expert(tmp_path / "a.expert").manifest.parts)
    unpack(tmp_path / "a.expert", tmp_path / "back")
    before, after = updates(folder), updates(tmp_path / "back")
    assert before.keys() == after.keys()
    assert len(before) == 4
    for name, update in before.items():
        assert torch.nn.functional.cosine_similarity(after[name].flatten(), update.flatten(), dim=0) > 0.93
        assert 0.9 < after[name].norm() / update.norm() < 1.1
    found = diff(folder, tmp_path / "a.expert")
    assert found.total.cosine > 0.95
    assert not found.left_out


def test_a_convolution_of_loha_with_core_tensors_is_kept_by_its_tensors(tmp_path: Path) -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(32, 32, 3)

    model = get_peft_model(Network(), LoHaConfig(r=32, use_effective_conv2d=True, target_modules=["convolution"]))
    torch.nn.init.normal_(model.base_model.model.convolution.hada_w1_a["default"])
    model.save_pretrained(tmp_path / "a")
    assert any(name.endswith("hada_t1") for name in load_file(tmp_path / "a" / ADAPTER))
    save_compressed(tmp_path / "a", tmp_path / "a.expert")
    assert not any(part.slices is not None for part in open_expert(tmp_path / "a.expert").manifest.parts)
    unpack(tmp_path / "a.expert", tmp_path / "back")
    after = load_file(tmp_path / "back" / ADAPTER)
    for name, tensor in load_file(tmp_path / "a" / ADAPTER).items():
        np.testing.assert_allclose(after[name], tensor, atol=0.05)


def test_sorted_positions_take_about_as_many_bits_as_their_gaps_have(tmp_path: Path) -> None:
    folder = saved(ShiraConfig(r=2, target_modules=["q_proj", "v_proj"]), tmp_path / "a")
    random, tensors = np.random.default_rng(0), load_file(folder / ADAPTER)
    for name, tensor in tensors.items():
        if name.endswith("shira_indices"):
            places = np.sort(random.choice(64 * 64, tensor.shape[1], replace=False))
            tensors[name] = np.stack([places // 64, places % 64]).astype(tensor.dtype)
    save_file(tensors, folder / ADAPTER, {"format": "pt"})
    save_compressed(folder, tmp_path / "a.expert")
    parts = open_expert(tmp_path / "a.expert").manifest.parts
    table = next(part for part in parts if part.columns)
    kept = sum(t.shape[1] for t in table.layout.tensors)
    share = 2 * 128 / 64**2
    entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share)) / share
    assert 8 * table.payload_bytes / kept < 1.05 * entropy + 0.25
    unpack(tmp_path / "a.expert", tmp_path / "back")
    after = load_file(tmp_path / "back" / ADAPTER)
    for name, tensor in tensors.items():
        if name.endswith("shira_indices"):
            np.testing.assert_array_equal(after[name], tensor)
        else:
            np.testing.assert_allclose(after[name], tensor, atol=0.02)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_changed_its_base_model_packs_with_a_warning(start: str, tmp_path: Path) -> None:
    folder = saved(LoraConfig(r=4, init_lora_weights=start, target_modules=["q_proj"]), tmp_path / "a")
    made = save_compressed(folder, tmp_path / "a.expert")
    assert any(note.startswith("warning: init_lora_weights") and start in note for note in made.notes)
    plain = saved(LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "b")
    assert not any("init_lora_weights" in note for note in save_compressed(plain, tmp_path / "b.expert").notes)
