"""Every benchmark runs by its one command, at a size that takes seconds, and prints the rows that it is about, whatever they say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from benchmarks.blending import DOMAINS, OTHERS, RANK, task
from benchmarks.flower_existing import STRATEGIES
from benchmarks.lora_averaging import METHODS
from compeft_client.models.adapter import adapter_arrays, load_adapter
from tests.server.dashboard.test_pages import ALL

pytestmark = [pytest.mark.xdist_group("benchmarks"), pytest.mark.long]
RUNS: dict[str, tuple[str, list[str]]] = {
    "blending": ("--quick --steps 2", ["blend, packed", "blend, unpacked", "the task's own expert"]),
    "catch_up": ("--quick", ["chosen form", " 3       5%", " 3      20%"]),
    "codec": ("--quick --size 300000", ["times_faster_than_argpartition", "add_to_over_dense_add", "bf16 safetensors"]),
    "dashboard": ("--rounds 12 --clients 2", [*ALL, "/metrics", "ratio"]),
    "device": ("--size 300000", ["times_faster_than_topk", "apply_over_dense_add"]),
    "exchange": ("--megabytes 2 --clients 2 --repeats 1", ["plain gRPC stream", "of the plain stream", "accepted/s"]),
    "flower_existing": ("--rounds 1", [*STRATEGIES, "fewer"]),
    "lora_averaging": ("--quick --rounds 1 --rows 4 --test-rows 4", [m.name for m in METHODS]),
    "merge": ("--updates 2 --parameters 131072", ["times_faster_than_numpy_by_1", "times_less_memory_than_flower"]),
    "privacy": ("sums --clients 6 --size 2000", ["Flower SecAgg+ 6 clients", "sum exact"]),
    "product": ("--quick", ["product space 100 x", "LoRAQuant 2 bit @ 0.9", "below bf16"]),
    "scale_rule": ("--quick --rows 8", ["base 0.", "expert 0."]),
    "startup": ("--versions 2 --starts 1", ["times that of one version", "sync of the whole log"]),
}

DATA = {"scale_rule": "tasks", "blending": "experts"}
"""The fixture with the data of a benchmark that needs some."""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A task of a few sentences, as `scale_rule` reads them."""
    folder = tmp_path / "hwu64"
    folder.mkdir()
    rows = [f"{label}\t{label} the {thing}" for label in ("play", "stop", "lower") for thing in ("music", "lights", "blinds")]
    for split in ("train", "test"):
        (folder / f"{split}.tsv").write_text("\n".join(["label\ttext", *rows]))
    return tmp_path


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    """Experts that learned nothing, and a task of a few sentences, as `blending` reads them."""
    adapter = task.adapter_of(task.load_classifier(RANK, torch.device("cpu")))
    adapter.save_pretrained(tmp_path / "experts" / "initial_r16", save_embedding_layers=False)
    start, random = adapter_arrays(adapter), np.random.default_rng(0)
    for name in (*(f"sentiment_{domain}" for domain in DOMAINS), *OTHERS):
        folder = tmp_path / "experts" / name
        load_adapter(adapter, {n: a + random.normal(0, 0.01, a.shape).astype(np.float32) for n, a in start.items()})
        adapter.save_pretrained(folder, save_embedding_layers=False)
        head = {"weight": random.normal(0, 1, (2, task.HIDDEN)).astype(np.float32), "bias": np.zeros(2, np.float32)}
        save_file(head, folder / "head.safetensors")
    rows = tmp_path / "sentiment" / DOMAINS[0]
    rows.mkdir(parents=True)
    for split in ("train", "test"):
        (rows / f"{split}.tsv").write_text("label\ttext\npos\tgood\nneg\tbad\npos\tlovely\nneg\tawful\n")
    return tmp_path


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs_and_prints_its_rows(name: str, request: pytest.FixtureRequest) -> None:
    options, rows = RUNS[name]
    data = ["--data", str(request.getfixturevalue(DATA[name]))] if name in DATA else []
    command = [sys.executable, "-m", f"benchmarks.{name}", *options.split(), *data]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row for row in rows if row not in done.stdout] == []
