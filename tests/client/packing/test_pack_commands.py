"""The commands as a person runs them: what they print, and their exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from compeft_client.cli.main import run
from tests.client import builders


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert run([*arguments, "--format", "json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_pack_sign_verify_unpack(adapter: Path, untrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["keys", "new", "me.key"])
    capsys.readouterr()
    made = as_json(capsys, "pack", "adapter", "--init", "untrained", "--sign", "me.key")
    assert made["file"] == "adapter.expert"
    assert made["bytes"] == Path("adapter.expert").stat().st_size
    assert made["unknown_start_bytes"] == 0
    assert as_json(capsys, "verify", "adapter.expert", "--key", "me.pub")["keyid"] == made["keyid"]
    as_json(capsys, "unpack", "adapter.expert", "-o", "back", "--key", "me.pub", "--init", "untrained")
    assert set(load_file("back/adapter_model.safetensors")) == set(builders.names())


def test_an_automatic_density_fills_the_budget_and_needs_one(
    adapter: Path, untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    least = as_json(capsys, "pack", "adapter", "--init", "untrained", "--density", "0.05")["bytes"]
    auto = ("pack", "adapter", "--init", "untrained", "--density", "auto", "--force")
    made = as_json(capsys, *auto, "--budget", f"{least + 100}B")
    assert least + 80 < made["bytes"] <= least + 100
    assert made["compression"]["density"] > 0.05
    assert run([*auto]) == 3
    assert "--density auto needs --budget" in capsys.readouterr().err
    assert run(["pack", "adapter", "--density", "much", "--force"]) == 2
    assert "'much' is neither a fraction, such as 0.05, nor auto" in capsys.readouterr().err


def test_a_budget_is_kept_to_the_byte_and_hardly_undercut(
    adapter: Path, untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = as_json(capsys, "pack", "adapter", "--init", "untrained", "--density", "0.5")["bytes"]
    kept = as_json(capsys, "pack", "adapter", "--init", "untrained", "--density", "0.5", "--budget", f"{free - 60}B", "--force")
    assert free - 160 < kept["bytes"] <= free - 60
    assert Path("adapter.expert").stat().st_size == kept["bytes"]
    assert kept["compression"]["density"] < 0.5
    much = as_json(capsys, "pack", "adapter", "--init", "untrained", "--density", "0.05", "--budget", "1MB", "--force")
    assert much["compression"]["density"] == 0.05
    assert run(["pack", "adapter", "--init", "untrained", "--density", "0.05", "--budget", "100B", "--force"]) == 3
    assert "do not depend on the density" in capsys.readouterr().err
    assert run(["pack", "adapter", "--init", "untrained", "--budget", "lots", "--force"]) == 3
    assert Path("adapter.expert").stat().st_size > 100


def test_pack_without_a_start_says_what_that_costs(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pack", "adapter", "--density", "0.05"]) == 0
    said = capsys.readouterr()
    assert "start unknown" in said.out
    assert "--init" in said.out
    assert "not signed" in said.out
    assert "times fewer than bf16" in said.out
    assert said.err == ""
    assert as_json(capsys, "pack", "adapter", "-o", "b.expert", "--density", "0.05")["unknown_start_bytes"]


def test_an_embedding_that_rides_along_is_shouted_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = builders.tuned(builders.initial()) | {"base_model.model.lm_head.weight": np.ones((500, 64), np.float32)}
    builders.write_adapter(tmp_path / "big", tensors)
    for command in ("pack", "inspect"):
        assert run([command, "big"]) == 0
        assert "lm_head.weight rides along: 128,000 bytes as stored, 64,000 packed" in capsys.readouterr().out


def test_inspect_a_directory_shows_modules_dead_ones_and_the_true_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = builders.tuned(builders.initial())
    tensors[builders.names()[1]][:] = 0
    builders.write_adapter(tmp_path / "adapter", tensors)
    found = as_json(capsys, "inspect", "adapter")
    assert found["dead"] == [builders.names()[1]]
    assert found["packed_bytes"]["0.05"] == as_json(capsys, "pack", "adapter", "--density", "0.05")["bytes"]  # type: ignore[index]
    assert {"25", "50"} <= set(found["product_bytes"])  # type: ignore[call-overload]
    assert run(["inspect", "adapter"]) == 0
    said = capsys.readouterr().out
    assert "layers.*.q_proj.lora_A.weight" in said
    assert "never trained: 1 of 2 of LoRA's B" in said


def test_inspect_a_file_shows_what_its_manifest_says(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["pack", "adapter", "--density", "0.1"])
    capsys.readouterr()
    found = as_json(capsys, "inspect", "adapter.expert")
    assert found["base_model"] == "org/base"
    assert [part["tensors"] for part in found["parts"]] == [2, 2]  # type: ignore[attr-defined]
    assert run(["inspect", "adapter.expert"]) == 0
    said = capsys.readouterr().out
    assert "density 0.1, 1.47 x norm" in said
    assert "not signed" in said


def test_diff_names_what_it_could_not_compare(adapter: Path, untrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["pack", "adapter", "--init", "untrained", "--density", "0.05"])
    capsys.readouterr()
    assert run(["diff", "adapter", "adapter.expert"]) == 0
    assert "2 tensors not compared: one starts from zero" in capsys.readouterr().out
    found = as_json(capsys, "diff", "adapter", "adapter.expert", "--init", "untrained")
    assert found["left_out"] == {}
    assert found["total"]["sign_agreement"] == 1.0  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["pack", "nowhere"], 3, "nowhere does not exist"),
        (["pack", "adapter", "--density", "0"], 3, "density is 0"),
        (["unpack", "adapter/adapter_config.json", "-o", "x"], 4, "not an expert file"),
        (
            ["inspect", "five.expert"],
            4,
            "five.expert is not an expert file: it begins 61626364, not 43504658; `compeft pack` makes",
        ),
        (["inspect", "cut.expert"], 4, "cut.expert has 99 bytes, its manifest alone claims 1"),
        (["inspect", "page.html"], 4, "page.html is not a whole safetensors file: it has 15 bytes, its header alone claims"),
        (["pack", "a.expert"], 3, "a.expert is an expert file, expected weights: `compeft unpack`"),
        (["pack", "adapter", "-o", "b.expert", "--sign", "other.pub"], 3, "other.pub does not hold a private key in PEM"),
        (["verify", "a.expert", "--key", "other.pub"], 6, "is not signed by"),
        (["pack", "adapter", "-o", "a.expert"], 3, "--force"),
        (["unpack", "a.expert", "-o", "x", "--max-parameters", "5"], 5, "--max-parameters raises it"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    adapter: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    run(["keys", "new", "other.key"])
    run(["pack", "adapter", "-o", "a.expert"])
    Path("five.expert").write_bytes(b"abcde")
    Path("cut.expert").write_bytes(Path("a.expert").read_bytes()[:99])
    Path("page.html").write_text("<!DOCTYPE html>")
    capsys.readouterr()
    assert run(arguments) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["pack", "unpack", "inspect", "verify", "diff"])
def test_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"Example: compeft {command}" in capsys.readouterr().out
