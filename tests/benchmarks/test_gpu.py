"""`make gpu` without a GPU: the same code at small sizes on CPU tensors, and the page that is committed."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu

pytestmark = pytest.mark.xdist_group("benchmarks")
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "gpu.md"


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_every_part_runs_and_is_in_the_page_and_the_json(tmp_path: Path) -> None:
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found["parts"]) == list(gpu.PARTS)
    assert found["parts"]["device codec against the core"]["identical"] == 24
    ran = found["parts"]["federated round of a language model"]
    assert 0 < ran["payload_bytes"] < ran["wire_bytes"]
    page = (tmp_path / "gpu.md").read_text()
    assert page.splitlines()[0].startswith("Run on CPU tensors, no GPU")
    assert "say nothing about speed" in page
    assert all(f"| {part} |" in page for part in gpu.PARTS)


def test_a_part_that_fails_is_named_and_ends_the_run_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: gpu.Given) -> gpu.Figures:
        raise RuntimeError("CUDA error: out of memory\nmore")

    monkeypatch.setattr(gpu, "PARTS", {"a part": broken})
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 1
    assert "| a part | failed | RuntimeError: CUDA error: out of memory |" in (tmp_path / "gpu.md").read_text()


def test_the_committed_page_says_in_its_first_line_whether_it_was_run() -> None:
    first = PAGE.read_text().splitlines()[0]
    assert first == "Not yet run on a GPU." or first.startswith("Run on NVIDIA")
    assert (PAGE.with_suffix(".json")).exists() == first.startswith("Run on")
