"""Long commands say how far they are where output is not a terminal."""

from pathlib import Path

import pytest

from compeft_client.cli import progress
from compeft_client.merging.merge import MergeRequest, merge_experts
from compeft_client.packing.pack import PackSettings
from tests.client import builders


def test_stages_print_a_line_to_standard_error_where_it_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_S", -1.0)
    with progress.stages("bench pool") as tell:
        tell("packed 1 of 4 experts")
    captured = capsys.readouterr()
    assert captured.err.startswith("bench pool: packed 1 of 4 experts, ")
    assert captured.out == ""


def test_a_command_that_ends_soon_prints_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.stages("merge") as tell, progress.watched("packing", 10) as tick:
        tell("read 1 of 2 experts")
        tick(5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("method", "last"), [("core_average", "merged 2 of 2 modules"), ("average", "merged 1 of 1 parts")])
def test_a_merge_tells_of_each_expert_read_and_each_module_merged(tmp_path: Path, method: str, last: str) -> None:
    paths = [builders.write_adapter(tmp_path / n, builders.tuned(builders.initial(), s)) for s, n in ((1, "one"), (2, "two"))]
    start = builders.write_adapter(tmp_path / "start", builders.initial())
    told: list[str] = []
    merge_experts(
        MergeRequest(paths, method, [], 1.0, {}, None, PackSettings(init=str(start))), tmp_path / "out", tell=told.append
    )
    assert told[:2] == ["read 1 of 2 experts", "read 2 of 2 experts"]
    assert told[-1] == last
