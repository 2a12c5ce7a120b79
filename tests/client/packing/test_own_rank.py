"""`unpack --rank own`: PEFT loads factors of the ranks that were kept, and computes the same updates with them."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from compeft_client.cli.main import run
from compeft_client.packing.pack import PackSettings, save_compressed, unpack
from compeft_core.errors import InputError
from tests.client import builders

pytestmark = pytest.mark.filterwarnings("ignore")
ADAPTER = "adapter_model.safetensors"


class Experts(nn.Module):
    """Two parameters of three experts each, as the layers of a mixture of experts have."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 24, 16))
        self.down = nn.Parameter(torch.randn(3, 16, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x @ u.T @ d.T for u, d in zip(self.up, self.down, strict=True)]).sum(0)


class Network(nn.Module):
    """An embedding, linear layers of nested names, a convolution and experts."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.q = nn.Linear(16, 16)
        self.deep = nn.ModuleDict({"q": nn.Linear(16, 16), "v": nn.Linear(16, 16)})
        self.convolution = nn.Conv2d(1, 8, 3, padding=1)
        self.experts = Experts()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.experts(self.deep["v"](self.deep["q"](self.q(self.words(tokens)))))
        return self.convolution(x[:, None]).sum((1, 2))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Network().eval()


CASES = {
    "linear": LoraConfig(r=6, lora_alpha=12, target_modules=["q", "v"]),
    "rslora": LoraConfig(r=6, lora_alpha=5, use_rslora=True, target_modules=["q", "v"]),
    "patterns": LoraConfig(
        r=6, lora_alpha=12, rank_pattern={"deep.q": 3, "v": 4}, alpha_pattern={"^q": 7}, target_modules=["q", "v"]
    ),
    "embedding and convolution": LoraConfig(r=6, lora_alpha=3, target_modules=["words", "convolution", "v"]),
    "dora": LoraConfig(r=6, lora_alpha=12, use_dora=True, target_modules=["q", "v"]),
    "experts": LoraConfig(r=4, lora_alpha=8, target_modules=["v"], target_parameters=["experts.up", "experts.down"]),
}


def trained(config: LoraConfig, folder: Path) -> Path:
    """A saved adapter whose products have falling singular values, each module's in its own way."""
    model = get_peft_model(network(), config)
    torch.manual_seed(1)
    for n, (name, parameter) in enumerate(sorted(model.named_parameters())):
        if "lora_" in name:
            values = torch.randn(parameter.shape)
            if "lora_B" in name or "embedding_B" in name:
                values *= (0.25 + 0.1 * (n % 4)) ** torch.arange(parameter.shape[1]).reshape(1, -1, *[1] * (parameter.dim() - 2))
            parameter.data = 0.2 * values
    model.save_pretrained(folder)
    return folder


def updates(directory: Path) -> dict[str, torch.Tensor]:
    """What PEFT adds to each weight."""
    model = PeftModel.from_pretrained(network(), directory)
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    assert layers
    return {n: m.get_delta_weight("default").detach() for n, m in layers.items()}


@pytest.mark.parametrize("case", CASES)
def test_peft_adds_the_same_updates_at_the_ranks_that_were_kept(case: str, tmp_path: Path) -> None:
    save_compressed(trained(CASES[case], tmp_path / "tuned"), tmp_path / "x.expert", PackSettings(quality=0.9))
    unpack(tmp_path / "x.expert", tmp_path / "keep")
    unpack(tmp_path / "x.expert", tmp_path / "own", rank="own")
    keep, own = updates(tmp_path / "keep"), updates(tmp_path / "own")
    assert keep.keys() == own.keys()
    for name, update in keep.items():
        torch.testing.assert_close(own[name], update, rtol=1e-5, atol=1e-7)
    tokens = torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        outputs = [PeftModel.from_pretrained(network(), tmp_path / f)(tokens) for f in ("keep", "own")]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    before, after = load_file(tmp_path / "keep" / ADAPTER), load_file(tmp_path / "own" / ADAPTER)
    assert before.keys() == after.keys()
    assert sum(t.numel() for t in after.values()) < sum(t.numel() for t in before.values())
    assert not any(t.abs().max() == 0 for n, t in after.items() if "lora_" in n and 1 not in t.shape)


def test_the_configuration_of_one_scaling_is_right_without_patterns_too(tmp_path: Path) -> None:
    save_compressed(trained(CASES["linear"], tmp_path / "tuned"), tmp_path / "x.expert", PackSettings(quality=0.9))
    unpack(tmp_path / "x.expert", tmp_path / "own", rank="own")
    fields = json.loads((tmp_path / "own" / "adapter_config.json").read_text())
    largest = max(t.shape[0] for n, t in load_file(tmp_path / "own" / ADAPTER).items() if "lora_A" in n)
    assert (fields["r"], fields["lora_alpha"]) == (largest, 2 * largest)
    assert fields["target_modules"]
    assert fields["peft_type"] == "LORA"


def test_a_module_of_which_nothing_was_kept_has_rank_one_and_no_effect(tmp_path: Path) -> None:
    tensors = builders.tuned(builders.initial())
    tensors[f"{builders.PREFIX}.0.q_proj.lora_B.weight"][:] = 0
    save_compressed(builders.write_adapter(tmp_path / "a", tensors), tmp_path / "x.expert", PackSettings(quality=0.9))
    assert run(["unpack", str(tmp_path / "x.expert"), "-o", str(tmp_path / "own"), "--rank", "own"]) == 0
    found = load_file(tmp_path / "own" / ADAPTER)
    assert found[f"{builders.PREFIX}.0.q_proj.lora_A.weight"].shape == (1, builders.WIDTH)
    assert not found[f"{builders.PREFIX}.0.q_proj.lora_B.weight"].any()


def test_a_file_without_products_has_no_ranks_of_its_own(adapter: Path, tmp_path: Path) -> None:
    save_compressed(adapter, tmp_path / "x.expert", PackSettings(density=0.1))
    with pytest.raises(InputError, match="--rank keep"):
        unpack(tmp_path / "x.expert", tmp_path / "own", rank="own")
    assert not (tmp_path / "own").exists()
