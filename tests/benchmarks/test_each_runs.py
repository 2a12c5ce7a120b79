"""Every benchmark runs by its one command, at a size that takes seconds, and prints the rows that it is about, whatever they say."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.flower_existing import STRATEGIES
from benchmarks.lora_averaging import METHODS
from tests.web.test_pages import ALL

pytestmark = pytest.mark.xdist_group("benchmarks")
RUNS: dict[str, tuple[str, list[str]]] = {
    "catch_up": ("--quick", ["chosen form", " 3       5%", " 3      20%"]),
    "codec": ("--quick --size 300000", ["times_faster_than_argpartition", "add_to_over_dense_add", "bf16 safetensors"]),
    "dashboard": ("--rounds 12 --clients 2", [*ALL, "/metrics", "ratio"]),
    "device": ("--size 300000", ["times_faster_than_topk", "apply_over_dense_add"]),
    "exchange": ("--megabytes 2 --clients 2 --repeats 1", ["plain gRPC stream", "of the plain stream", "accepted/s"]),
    "flower_existing": ("--rounds 1", [*STRATEGIES, "fewer"]),
    "lora_averaging": ("--quick --rounds 1 --rows 4 --test-rows 4", [m.name for m in METHODS]),
    "merge": ("--updates 2 --parameters 131072", ["times_faster_than_numpy_by_1", "times_less_memory_than_flower"]),
    "scale_rule": ("--quick --rows 8", ["base 0.", "expert 0."]),
    "startup": ("--versions 2 --starts 1", ["times that of one version", "sync of the whole log"]),
}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A task of a few sentences, as `scale_rule` reads them."""
    folder = tmp_path / "hwu64"
    folder.mkdir()
    rows = [f"{label}\t{label} the {thing}" for label in ("play", "stop", "lower") for thing in ("music", "lights", "blinds")]
    for split in ("train", "test"):
        (folder / f"{split}.tsv").write_text("\n".join(["label\ttext", *rows]))
    return tmp_path


@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs_and_prints_its_rows(name: str, tasks: Path) -> None:
    options, rows = RUNS[name]
    data = ["--data", str(tasks)] if name == "scale_rule" else []
    command = [sys.executable, "-m", f"benchmarks.{name}", *options.split(), *data]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row for row in rows if row not in done.stdout] == []
