"""`compeft blend` with a real measuring command: a program that tells how near a directory's adapter is to the sum of two others'."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compeft_client.cli.main import run
from compeft_client.packing.pack import PackSettings, load_compressed, save_compressed
from tests.client import builders

READ = """
import array, json, pathlib, sys

def read(folder):
    raw = (pathlib.Path(folder) / "adapter_model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    spans = {name: t["data_offsets"] for name, t in json.loads(raw[8:start]).items() if "lora_B" in name}
    return [x for name in sorted(spans) for x in array.array("f", raw[start + spans[name][0] : start + spans[name][1]])]
"""
"""Every B of a directory as one list, without numpy: the command is started some hundred times."""
MEASURE = (
    READ
    + """
folder, one, two, log = sys.argv[1:]
with open(log, "a") as stream:
    stream.write("x")
wanted = [a + b for a, b in zip(read(one), read(two))]
print("some chatter")
print(1 - sum((a - b) ** 2 for a, b in zip(read(folder), wanted)) / sum(b * b for b in wanted))
"""
)
STOPS = """
import os
if os.path.exists("stop") and os.path.getsize("calls") >= int(open("stop").read()):
    raise SystemExit("the disk is full")
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def experts(untrained: Path, tmp_path: Path) -> list[str]:
    """Two packed experts that started from the same directory, and one that is noise."""
    names = ["one", "two", "noise"]
    for seed, name in enumerate(names, 1):
        folder = builders.write_adapter(tmp_path / name, builders.tuned(builders.initial(), seed))
        save_compressed(folder, f"{name}.expert", PackSettings(0.5, init=str(untrained)))
    return [f"{name}.expert" for name in names]


@pytest.fixture
def measuring(experts: list[str]) -> str:
    Path("measure.py").write_text(MEASURE)
    return f"{sys.executable} measure.py {{dir}} one two calls"


def blend(experts: list[str], untrained: Path, measuring: str, output: str, *more: str) -> int:
    options = ["--init", str(untrained), "--eval", measuring, "-o", output, "--format", "json", "--steps", "30"]
    return run(["blend", *experts, *options, *more])


def calls() -> int:
    return len(Path("calls").read_text()) if Path("calls").exists() else 0


def test_it_finds_a_composition_better_than_any_expert_and_writes_it(
    experts: list[str], untrained: Path, measuring: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert blend(experts, untrained, measuring, "both") == 0
    said = json.loads(capsys.readouterr().out)
    metrics = [trial["metric"] for trial in said["trials"]]
    assert len(metrics) == 1 + 3 + 1 + 30
    assert metrics[0] == pytest.approx(0.0)
    assert said["metric"] > max(metrics[:5]) + 0.2
    assert said["weights"]["one.expert"] > 0.5
    assert said["weights"]["two.expert"] > 0.5
    assert said["output"] == "both"
    assert said["bytes"] == sum(file.stat().st_size for file in Path("both").iterdir())


def test_what_it_writes_is_what_merge_makes_of_the_weights(
    experts: list[str], untrained: Path, measuring: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert blend(experts, untrained, measuring, "both") == 0
    weights = json.loads(capsys.readouterr().out)["weights"]
    told = [
        "--method",
        "task_arithmetic",
        "--weights",
        ",".join(str(weights[name]) for name in experts),
        "--init",
        str(untrained),
    ]
    assert run(["merge", *experts, "-o", "merged", *told]) == 0
    found, merged = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("both", "merged"))
    assert all(np.array_equal(found[name], merged[name]) for name in builders.names())


def test_a_result_can_be_a_file(experts: list[str], untrained: Path, measuring: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert blend(experts, untrained, measuring, "both.expert", "--density", "0.5") == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == Path("both.expert").stat().st_size
    assert load_compressed(Path("both.expert"), init=str(untrained)).tensors


def test_an_interrupted_search_goes_on_and_measures_nothing_twice(
    experts: list[str], untrained: Path, measuring: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert blend(experts, untrained, measuring, "whole") == 0
    whole, once = json.loads(capsys.readouterr().out), calls()
    Path("stopping.py").write_text(STOPS + MEASURE)
    Path("stop").write_text(str(once + 12))
    stopping = measuring.replace("measure.py", "stopping.py")
    assert blend(experts, untrained, stopping, "both") == 3
    assert "the disk is full" in capsys.readouterr().err
    assert calls() == once + 12
    assert not Path("both").exists()
    Path("stop").unlink()
    assert blend(experts, untrained, stopping, "both") == 0
    assert calls() == 2 * once
    found = json.loads(capsys.readouterr().out)
    assert (found["weights"], found["trials"]) == (whole["weights"], whole["trials"])


def test_another_expert_in_the_same_place_is_measured_again(
    experts: list[str], untrained: Path, measuring: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert blend(experts, untrained, measuring, "both") == 0
    once = calls()
    folder = builders.write_adapter(tmp_path / "one", builders.tuned(builders.initial(), seed=9))
    save_compressed(folder, "one.expert", PackSettings(0.5, init=str(untrained)), force=True)
    assert blend(experts, untrained, measuring, "both", "--force") == 0
    assert calls() == 2 * once


def test_where_no_expert_helps_nothing_is_written(
    experts: list[str], untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("small.py").write_text(READ + "print(-sum(abs(x) for x in read(sys.argv[1])))")
    evaluate = f"{sys.executable} small.py {{dir}}"
    assert run(["blend", *experts, "--init", str(untrained), "--eval", evaluate, "-o", "both", "--steps", "3"]) == 0
    assert "nothing is written" in capsys.readouterr().out
    assert not Path("both").exists()


def test_people_read_a_table(experts: list[str], untrained: Path, measuring: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["blend", *experts, "--init", str(untrained), "--eval", measuring, "-o", "both", "--steps", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[12:] for line in lines[:5]] == ["no expert", *(f"{name} alone" for name in experts), "mean of all"]
    assert lines[-1].startswith("both: 3 experts composed, ")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["one.expert", "two.expert", "--bound", "0"], 3, "bound is 0"),
        (["one.expert", "two.expert", "--steps", "0"], 3, "steps is 0"),
        (["one.expert"], 3, "1 experts named"),
        (["one.expert", "one.expert"], 3, "named twice"),
        (["one.expert", "missing.expert"], 3, "missing.expert"),
        (["one.expert", "two.expert", "--eval", "/no/such/program"], 3, "cannot run /no/such/program"),
        (["one.expert", "two.expert", "--eval", " "], 3, "--eval is empty"),
        (["one.expert", "two.expert", "--eval", "echo nan"], 3, "answered nan"),
        (["one.expert", "two.expert", "--eval", "echo nothing"], 3, "must print the metric"),
        (["one.expert", "two.expert", "-o", "one"], 3, "exists already"),
    ],
)
def test_what_cannot_be_blended_is_refused_in_one_line(
    arguments: list[str], code: int, said: str, experts: list[str], untrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["--init", str(untrained), "--eval", "echo 1", "-o", "both"]
    assert run(["blend", *usual, *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not Path("both").exists()


def test_heads_are_not_summed_as_if_they_were_changes(
    experts: list[str], untrained: Path, measuring: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        save_file({"classifier.weight": np.ones((20, builders.WIDTH), np.float32)}, tmp_path / name / "head.safetensors")
    assert blend(["one", "two"], untrained, measuring, "both") == 3
    assert "would sum values, not changes" in capsys.readouterr().err
