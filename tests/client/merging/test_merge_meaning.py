"""Options that change what an adapter's tensors mean: merged by that meaning, or refused by name."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from transformers import MixtralConfig, MixtralForCausalLM

from compeft_client.checkpoints.lora_modules import factors_of, modules_of, tensors_of_factors
from compeft_client.merging.merge import MergeRequest, merge_experts
from compeft_client.packing.pack import PackSettings
from compeft_core.errors import InputError
from tests.client import builders

TOKENS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


def merged(
    folder: Path, paths: list[Path], method: str = "core_average", weights: tuple[float, ...] = (), same: bool = False
) -> Path:
    out = folder / f"merged-{method}"
    merge_experts(MergeRequest(paths, method, weights, 1.0, {}, None, PackSettings(), same), out, force=True)
    return out


def expert(folder: Path, seed: int, rank: int = 4, extra: Mapping[str, np.ndarray] | None = None, **config: object) -> Path:
    random = np.random.default_rng(seed)
    shapes = {n: (rank, 64) if "lora_A" in n else (64, rank) for n in builders.names()}
    tensors = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    return builders.write_adapter(folder, tensors | dict(extra or {}), r=rank, **config)


@pytest.mark.parametrize("said", [lambda t: t, lambda t: {"embed_tokens": t}, lambda t: {"model.embed_tokens": t}])
@pytest.mark.parametrize(("a", "b"), [([7, 3], [3, 9]), ([1], [2]), ([5, 6], [5, 6]), ([5, 6], [6, 5])])
def test_rows_of_trained_tokens_are_merged_by_token(tmp_path: Path, said: object, a: list[int], b: list[int]) -> None:
    rows = {token: np.full(8, token, np.float32) for token in {*a, *b}}
    paths = [
        expert(
            tmp_path / name,
            seed,
            extra={TOKENS: np.stack([sign * rows[t] for t in tokens])},
            trainable_token_indices=said(tokens),  # type: ignore[operator]  # a function of the parameters
        )
        for name, seed, tokens, sign in (("a", 1, a, 1), ("b", 2, b, 3))
    ]
    out = merged(tmp_path, paths, weights=(3, 1))
    tokens = sorted({*a, *b})
    want = [rows[t] * (1 if t not in b else 3 if t not in a else 1.5) for t in tokens]
    np.testing.assert_allclose(load_file(out / "adapter_model.safetensors")[TOKENS], np.stack(want))
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == said(tokens)  # type: ignore[operator]  # a function of the parameters


def test_rows_of_tokens_that_the_configuration_does_not_name_are_refused(tmp_path: Path) -> None:
    extra = {TOKENS: np.zeros((2, 8), np.float32)}
    paths = [expert(tmp_path / n, 1, extra=extra, trainable_token_indices=i) for n, i in (("a", [1, 2]), ("b", [1]))]
    with pytest.raises(InputError, match=r"trainable_token_indices is \[1\]"):
        merged(tmp_path, paths)


@pytest.mark.parametrize("method", ["core_average", "average"])
@pytest.mark.parametrize("tokens", [None, [5], [6, 5]])
def test_activated_lora_is_merged_with_the_same_invocation_only(tmp_path: Path, method: str, tokens: list[int] | None) -> None:
    first = expert(tmp_path / "a", 1, alora_invocation_tokens=[5, 6])
    for pair in ([first, other := expert(tmp_path / "b", 2, alora_invocation_tokens=tokens)], [other, first]):
        with pytest.raises(InputError, match="alora_invocation_tokens"):
            merged(tmp_path, pair, method)
    out = merged(tmp_path, [first, expert(tmp_path / "c", 3, alora_invocation_tokens=[5, 6])])
    assert json.loads((out / "adapter_config.json").read_text())["alora_invocation_tokens"] == [5, 6]


@pytest.mark.parametrize("name", ["/data/models/base", None, "org/base-copy"])
def test_one_base_model_under_two_names_is_merged_when_said_so(tmp_path: Path, name: str | None) -> None:
    paths = [expert(tmp_path / "a", 1), expert(tmp_path / "b", 2, base_model_name_or_path=name)]
    with pytest.raises(InputError, match="--same-base"):
        merged(tmp_path, paths)
    out = merged(tmp_path, paths, same=True)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"


@pytest.mark.parametrize("method", ["core_average", "knots_ties", "ties"])
def test_an_option_that_is_not_known_is_refused_by_name(tmp_path: Path, method: str) -> None:
    paths = [expert(tmp_path / "a", 1), expert(tmp_path / "b", 2, use_new_variant="x")]
    with pytest.raises(InputError, match=r"use_new_variant.*upgrade compeft"):
        merged(tmp_path, paths, method)


@pytest.mark.parametrize(("experts", "rank", "other"), [(1, 4, 2), (3, 2, 2), (4, 3, 1)])
def test_slices_of_an_expert_parameter_are_merged_one_by_one(tmp_path: Path, experts: int, rank: int, other: int) -> None:
    random, name = np.random.default_rng(0), "base_model.model.mlp.experts"
    paths, want = [], np.zeros((experts, 10, 6))
    for folder, r in (("a", rank), ("b", other)):
        a, b = random.standard_normal((r * experts, 6)), random.standard_normal((10, r * experts))
        want += np.einsum("ore,eri->eoi", b.reshape(10, r, experts), a.reshape(experts, r, 6)) * 8 / r / 2
        tensors = {f"{name}.lora_A.weight": a.astype(np.float32), f"{name}.lora_B.weight": b.astype(np.float32)}
        config = {"r": r, "lora_alpha": 8, "target_modules": [], "target_parameters": ["experts.down_proj"]}
        paths.append(builders.write_adapter(tmp_path / folder, tensors, **config))
    out = merged(tmp_path, paths)
    got, config = load_file(out / "adapter_model.safetensors"), json.loads((out / "adapter_config.json").read_text())
    a, b = got[f"{name}.lora_A.weight"], got[f"{name}.lora_B.weight"]
    assert config["r"] == config["lora_alpha"] == a.shape[0] // experts
    product = np.einsum("ore,eri->eoi", b.reshape(10, -1, experts), a.reshape(experts, -1, 6))
    np.testing.assert_allclose(product, want, atol=1e-5)


@pytest.mark.parametrize(
    ("a_shape", "b_shape", "slices"), [((8, 6), (5, 8), 4), ((2, 3, 3, 3), (7, 2, 1, 1), 1), ((4, 9), (3, 4), 1)]
)
def test_factors_are_taken_apart_and_put_together(a_shape: tuple[int, ...], b_shape: tuple[int, ...], slices: int) -> None:
    random, fields = np.random.default_rng(0), {"r": a_shape[0] // slices, "target_parameters": ["x"] if slices > 1 else None}
    a, b = (random.standard_normal(s).astype(np.float32) for s in (a_shape, b_shape))
    (module,) = modules_of({"m.lora_A.weight": a_shape, "m.lora_B.weight": b_shape}, fields)
    assert module.slices == slices
    again = tensors_of_factors(factors_of(module, a, b), module.rank, module)  # type: ignore[arg-type]  # float factors
    assert np.array_equal(again[0], a)
    assert np.array_equal(again[1], b)


def mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    return MixtralForCausalLM(MixtralConfig(intermediate_size=12, num_local_experts=4, num_experts_per_tok=2, **sizes)).eval()


def change(path: Path) -> dict[str, torch.Tensor]:
    base, tuned = mixtral().state_dict(), PeftModel.from_pretrained(mixtral(), path).merge_and_unload().state_dict()
    return {name: tuned[name] - base[name] for name in base}


@pytest.mark.filterwarnings("ignore")
def test_peft_loads_a_merged_mixture_of_experts_and_adds_the_mean(tmp_path: Path) -> None:
    paths = []
    for seed in (7, 8):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=2, lora_alpha=8, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]
        )
        model = get_peft_model(mixtral(), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(tmp_path / str(seed))
        paths.append(tmp_path / str(seed))
    out = merged(tmp_path, paths)
    first, second, got = (change(path) for path in (*paths, out))
    for name, value in got.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2, atol=1e-5, rtol=1e-3)
