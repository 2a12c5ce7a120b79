"""The benchmark's family `lm` on a tiny model: every arm runs, learns from the same rows, and is counted."""

from pathlib import Path

import pytest

from benchmarks.federated import language
from benchmarks.federated.__main__ import main
from benchmarks.federated.language import CLIENTS, Effort, base_row, dealt, run_language, task_rows
from benchmarks.federated.report import outcomes_of
from tests.examples.language_rounds import app_of

pytestmark = [
    pytest.mark.long,
    pytest.mark.xdist_group("benchmarks"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]
TASK, EFFORT = "lm-sentiment", Effort(rows=16, test_rows=6, epochs=1, batch=4)
ARMS = ["dense fp32", "dense bf16", "8-bit", "nf4", "FFA-LoRA", "LoRA-A2 r1", "STC 5 %", "ours 5 % / 5 %"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's tiny model in the place of SmolLM2."""
    with app_of("plain"):
        from language.model import tiny as made  # type: ignore[import-not-found]  # the app is on the path here only

    monkeypatch.setattr(language, "load_base", lambda: made()[0].requires_grad_(False).eval())
    monkeypatch.setattr(language, "load_tokenizer", lambda: made()[1])


def test_every_row_is_dealt_to_one_client_and_no_client_is_without() -> None:
    rows, tests = task_rows(TASK, 0, Effort(rows=60, test_rows=6))
    parts = dealt(rows, 0)
    assert (len(parts), len(tests)) == (CLIENTS, 6)
    assert all(parts)
    assert {row.ids for part in parts for row in part} == {row.ids for row in rows}


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_runs_a_round_and_its_bytes_are_those_of_its_format(arm: str) -> None:
    found = run_language(TASK, arm, 0, 1, EFFORT)
    size = found["parameters"]
    sent = found["sent_up"][0] / CLIENTS  # type: ignore[index]  # lists of numbers
    assert isinstance(size, int)
    whole = {"dense fp32": 4 * size, "dense bf16": 2 * size, "8-bit": size * (1 + 4 / 256), "nf4": size * (0.5 + 4 / 64)}
    if arm in whole:
        assert sent == pytest.approx(whole[arm], rel=0.01)
    else:
        assert 0 < sent < 4 * size
    assert found["loss"][0] > 0  # type: ignore[index]  # the same
    assert found["train_cpu_seconds"] > 0  # type: ignore[operator]  # a number


def test_the_command_runs_what_is_missing_and_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "lm.jsonl"
    monkeypatch.setattr("benchmarks.federated.__main__.EFFORT", EFFORT)
    monkeypatch.setattr("benchmarks.federated.__main__.draw", lambda *_: None)
    words = ["federated", "--tasks", TASK, "--arms", "dense fp32", "--seeds", "1", "--rounds", "1", "--results", str(results)]
    monkeypatch.setattr("sys.argv", words)
    main()
    main()
    assert [row["arm"] for row in outcomes_of(results)] == ["base", "dense fp32"]
    assert "of 200 GB" in capsys.readouterr().out


def test_the_base_row_costs_no_bytes() -> None:
    row = base_row(TASK, 0, EFFORT)
    assert (row["sent_up"], row["sent_down"]) == ([0], [0])
    assert 0 <= row["accuracy"][0] <= 1  # type: ignore[index]  # a list of numbers
