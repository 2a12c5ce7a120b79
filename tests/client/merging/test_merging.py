"""`compeft merge`: what comes out is what the definitions say, and what cannot be merged is refused with a reason."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compeft_client.cli.main import run
from compeft_client.packing.pack import PackSettings, load_compressed, save_compressed
from compeft_core import METHODS
from compeft_core.merging.lora_factors import FACTOR_METHODS
from tests.client import builders
from tests.client.builders import RANK, WIDTH

ENTRIES = [m for m in METHODS if m not in ("krum", "multi_krum")]
A, B = builders.names()[:2]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def experts(untrained: Path, tmp_path: Path) -> list[str]:
    """Two packed experts that started from the same directory."""
    for seed, name in ((1, "one"), (2, "two")):
        folder = builders.write_adapter(tmp_path / name, builders.tuned(builders.initial(), seed))
        save_compressed(folder, f"{name}.expert", PackSettings(0.3, init=str(untrained)))
    return ["one.expert", "two.expert"]


def adapter(folder: str, rank: int, seed: int, **config: object) -> str:
    """A directory with random factors of one rank, at their final values."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.standard_normal((rank, WIDTH) if "lora_A" in name else (WIDTH, rank)).astype(np.float32)
        for name in builders.names()
    }
    return str(builders.write_adapter(Path(folder), tensors, r=rank, **config))


def product(folder: str, scaling: float) -> np.ndarray:
    tensors = load_file(f"{folder}/adapter_model.safetensors")
    return scaling * tensors[B].astype(np.float64) @ tensors[A].astype(np.float64)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["merge", *arguments]) in (3, 6, 7)
    return capsys.readouterr().err


def test_products_of_any_rank_and_scaling_are_averaged_exactly(capsys: pytest.CaptureFixture[str]) -> None:
    made = [
        adapter("plain", 4, 1, lora_alpha=8),
        adapter("rs", 2, 2, lora_alpha=6, use_rslora=True),
        adapter("pattern", 3, 3, lora_alpha=1, alpha_pattern={"q_proj": 12}),
    ]
    assert run(["merge", *made, "-o", "out", "--weights", "1,2,1", "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    expected = (product("plain", 8 / 4) + 2 * product("rs", 6 / 2**0.5) + product("pattern", 12 / 3)) / 4
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert said["ranks"] == [9]
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["alpha_pattern"]) == (9, 9, False, {})
    np.testing.assert_allclose(product("out", 1.0), expected, atol=1e-5)


@pytest.mark.parametrize("method", FACTOR_METHODS)
def test_every_method_for_products_writes_an_adapter(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = [adapter("a", 4, 1), adapter("b", 2, 2)]
    assert run(["merge", *made, "-o", "out", "--method", method, "--rank", "5"]) == 0
    assert "2 experts merged by " + method in capsys.readouterr().out
    tensors = load_file("out/adapter_model.safetensors")
    assert tensors[A].shape == (5, WIDTH)
    assert np.isfinite(tensors[B]).all()


@pytest.mark.parametrize("method", ENTRIES)
def test_every_method_for_entries_takes_packed_experts(
    method: str, experts: list[str], untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["merge", *experts, "-o", "out", "--method", method, "--init", str(untrained)]) == 0
    tensors = load_file("out/adapter_model.safetensors")
    assert tensors[A].shape == (RANK, WIDTH)
    assert json.loads(Path("out/adapter_config.json").read_text())["r"] == RANK


def test_an_average_of_packed_experts_is_the_start_and_the_mean_of_what_they_hold(experts: list[str], untrained: Path) -> None:
    assert run(["merge", *experts, "-o", "out", "--method", "average", "--weights", "3,1", "--init", str(untrained)]) == 0
    held = [load_compressed(file, init=str(untrained)).tensors["adapter_model.safetensors"] for file in experts]
    found = load_file("out/adapter_model.safetensors")
    for name in builders.names():
        np.testing.assert_allclose(found[name], 0.75 * held[0][name] + 0.25 * held[1][name], atol=1e-6)


def test_task_arithmetic_takes_away_what_an_expert_of_negative_weight_holds(experts: list[str], untrained: Path) -> None:
    arguments = ["--method", "task_arithmetic", "--weights", "-0.5,0.5", "--init", str(untrained)]
    assert run(["merge", *experts, "-o", "out", *arguments]) == 0
    held = [load_compressed(file, init=str(untrained)).tensors["adapter_model.safetensors"] for file in experts]
    found = load_file("out/adapter_model.safetensors")
    for name, start in builders.initial().items():
        np.testing.assert_allclose(found[name], start - 0.5 * held[0][name] + 0.5 * held[1][name], atol=1e-6)


def test_directories_are_compressed_first_and_a_result_can_be_a_file(untrained: Path, experts: list[str]) -> None:
    arguments = ["one", "two", "--method", "ties", "--init", str(untrained), "--density", "0.3"]
    assert run(["merge", *arguments, "-o", "out"]) == 0
    assert run(["merge", *experts, "-o", "packed", "--method", "ties", "--init", str(untrained)]) == 0
    first, second = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("out", "packed"))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert run(["merge", *arguments, "-o", "both.expert"]) == 0
    kept = load_compressed("both.expert", init=str(untrained)).tensors["adapter_model.safetensors"]
    assert np.dot((kept[B] - 0).reshape(-1), first[B].reshape(-1)) > 0


def test_experts_that_started_elsewhere_are_refused_by_entry_and_merged_as_products(capsys: pytest.CaptureFixture[str]) -> None:
    made = [adapter("a", 4, 1), adapter("b", 4, 2)]
    said = refusal(capsys, *made, "-o", "out", "--method", "ties")
    assert "is unknown, so its changes cannot be merged" in said
    assert "core_average" in said
    assert run(["merge", *made, "-o", "out"]) == 0


def test_other_starts_ranks_and_scalings_are_refused_by_entry(
    experts: list[str], untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = {name: value + np.float32(1e-3) for name, value in builders.initial().items()}
    builders.write_adapter(tmp_path / "near", near)
    save_compressed("two", "seeded.expert", PackSettings(0.3, init="near"))
    assert "do not start from the same values" in refusal(
        capsys, experts[0], "seeded.expert", "-o", "out", "--method", "average", "--init", str(untrained)
    )
    builders.write_adapter(tmp_path / "loud", builders.tuned(builders.initial()), lora_alpha=64)
    said = refusal(capsys, "one", "loud", "-o", "out", "--method", "average", "--init", str(untrained))
    assert "lora_alpha is 8 in one and 64 in loud" in said
    builders.write_adapter(tmp_path / "wrong", builders.initial(seed=9))
    assert "--init is not what" in refusal(capsys, *experts, "-o", "out", "--method", "average", "--init", "wrong")
    assert "give the same one, --init" in refusal(capsys, *experts, "-o", "out", "--method", "average")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"init_lora_weights": "pissa"}, "it starts from its base model"),
        ({"lora_bias": True}, "has lora_bias"),
        ({"base_model_name_or_path": "other/base"}, "experts of different base models cannot be merged"),
        ({"peft_type": "IA3"}, "peft_type is 'LORA'"),
        ({"lora_alpha": None}, "no lora_alpha"),
        ({"alpha_pattern": {"(": 1}}, "not a regular expression"),
    ],
)
def test_what_would_be_merged_wrongly_is_refused(
    config: dict[str, object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in refusal(capsys, adapter("a", 4, 1), adapter("b", 4, 2, **config), "-o", "out")
    assert not Path("out").exists()


def test_heads_are_averaged_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, name in enumerate(("a", "b")):
        adapter(name, 4, i)
        save_file({"classifier.weight": np.full((2, WIDTH), float(i), np.float32)}, tmp_path / name / "head.safetensors")
    assert run(["merge", "a", "b", "-o", "out", "--weights", "1,3", "--method", "tsv_m"]) == 0
    assert np.all(load_file("out/head.safetensors")["classifier.weight"] == 0.75)
    save_file({"classifier.weight": np.zeros((3, WIDTH), np.float32)}, tmp_path / "b" / "head.safetensors")
    assert "has shape [2, 64] in a and [3, 64] in b" in refusal(capsys, "a", "b", "-o", "other")


def test_heads_are_not_summed_as_if_they_were_changes(
    tmp_path: Path, untrained: Path, experts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        save_file({"classifier.weight": np.ones((20, WIDTH), np.float32)}, tmp_path / name / "head.safetensors")
    arguments = ["one", "two", "--init", str(untrained), "-o", "out", "--method"]
    assert "would sum values, not changes" in refusal(capsys, *arguments, "task_arithmetic")
    assert run(["merge", *arguments, "ties"]) == 0
    assert np.all(load_file("out/head.safetensors")["classifier.weight"] == 1.0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a"], "1 experts given"),
        (["a", "b", "--method", "mode"], "known are core_average"),
        (["a", "b", "--weights", "1,2,3"], "3 weights for 2 experts"),
        (["a", "b", "--weights", "1,x"], "expected a number"),
        (["a", "b", "--weights", "0,0"], "one at least not 0"),
        (["a", "b", "--weights", "2,-1"], "a weight is -1: only"),
        (["a", "b", "-p", "trim"], "NAME=VALUE"),
        (["a", "b", "-p", "trim=0.2"], "core_average takes keep, not trim"),
        (["a", "b", "--method", "ties", "-p", "trim=0.2"], "ties takes no parameters, not trim"),
        (["a", "b", "--method", "krum", "-p", "byzantine=0.5"], "whole number"),
        (["a", "b", "--method", "krum", "-p", "hostile=1"], "krum takes byzantine, not hostile"),
        (["a", "b", "--method", "ties", "--rank", "3"], "--rank is for core_average"),
        (["a", "b", "-p", "keep=2"], "keep is 2"),
    ],
)
def test_wrong_usage_is_one_line_with_the_way_out(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    adapter("a", 4, 1)
    adapter("b", 4, 2)
    said = refusal(capsys, *arguments, "-o", "out")
    assert reason in said
    assert said.count("\n") == 1


def test_products_are_packed_again_and_nothing_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    made = [adapter("a", 4, 1), adapter("b", 4, 2)]
    assert run(["merge", *made, "-o", "out.expert"]) == 0
    assert run(["merge", *made, "-o", "out"]) == 0
    assert "exists already" in refusal(capsys, *made, "-o", "out")
    assert run(["merge", *made, "-o", "out", "--force"]) == 0


def test_modules_that_only_one_adapts_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter("a", 4, 1)
    tensors = load_file("a/adapter_model.safetensors")
    builders.write_adapter(tmp_path / "b", {name: tensors[name] for name in (A, B)})
    assert "is only in one of a and b" in refusal(capsys, "a", "b", "-o", "out")


@pytest.mark.parametrize("output", ["out", "out.expert"])
def test_a_merge_says_which_expert_was_never_trained(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {n: v * ("lora_A" in n) for n, v in builders.tuned(builders.initial()).items()}
    made = [adapter("trained", 4, 1), str(builders.write_adapter(Path("fresh"), tensors))]
    assert run(["merge", *made, "-o", output]) == 0
    assert "\nfresh: never trained: all 2 of LoRA's B" in capsys.readouterr().out
    assert run(["merge", *made, "-o", output, "--force", "--format", "json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert [note for note in notes if note.startswith("fresh: ") and "never trained" in note]
    assert not [note for note in notes if note.startswith("trained: ")]
