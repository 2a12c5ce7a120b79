"""An existing Flower app and its compressed twin: what differs, what the docs show of it, and rounds of four of Flower's strategies."""

import difflib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from digits.task import Net, load_central_data, load_data
from flwr.app import Array, ArrayRecord
from flwr.cli.build import build_fab_from_disk
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from compeft_core import state_digest
from compeft_core.layout import flatten, layout_of
from compeft_core.statistics import dense_names
from compeft_proto.keys import new_key
from compeft_server.flower.conductor import ConductorConfig
from compeft_server.flower.strategy import CompressedStrategy, Plan
from tests.examples.digits_rounds import CLIENTS, PARAMETERS, accuracies, run_compressed

ROOT = Path(__file__).parents[2]
APPS = ROOT / "examples" / "flower-existing"
CHANGED = ("digits/client_app.py", "digits/server_app.py")


@pytest.fixture(autouse=True)
def flower_task() -> Iterator[None]:
    """Flower builds messages only inside a task."""
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


def files(version: str) -> dict[str, str]:
    found = (path for path in sorted((APPS / version).rglob("*")) if path.suffix in (".py", ".toml"))
    return {str(path.relative_to(APPS / version)): path.read_text() for path in found}


def test_the_two_versions_differ_in_two_files_and_not_in_the_model_or_the_training() -> None:
    plain, compressed = files("plain"), files("compressed")
    assert set(plain) == set(compressed)
    assert tuple(name for name in plain if plain[name] != compressed[name]) == CHANGED


def differing(name: str) -> list[str]:
    """The lines that differ, with a line of @@ between one place and the next."""
    before, after = (files(version)[name].splitlines() for version in ("plain", "compressed"))
    return list(difflib.unified_diff(before, after, lineterm="", n=0))[3:]


def shown(name: str) -> str:
    """The lines that differ, with a blank line between one place and the next."""
    return "\n".join("" if line.startswith("@@") else line for line in differing(name))


@pytest.mark.parametrize("name", CHANGED)
def test_the_docs_show_what_differs(name: str) -> None:
    assert f"```diff\n{shown(name)}\n```\n" in (ROOT / "docs" / "existing-flower-app.md").read_text()


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # flwr builds bundles with a renamed pattern class
@pytest.mark.parametrize("version", ["plain", "compressed"])
def test_flower_bundles_both(version: str) -> None:
    assert 0 < len(build_fab_from_disk(APPS / version)) < 50_000


def test_no_client_has_an_image_of_another_or_of_the_server() -> None:
    loaders = [load_central_data(64), *(part for n in range(CLIENTS) for part in load_data(n, CLIENTS, 16))]
    sizes = [len(loader.dataset) for loader in loaders]  # type: ignore[arg-type]  # these datasets have a length
    assert (sum(sizes), sizes[0]) == (1797, 297)


def test_the_plan_begins_within_the_bounds_of_pytorch() -> None:
    plan, fresh = Plan.for_model(Net(), "digits", seed=0), ArrayRecord(Net().state_dict())
    drawn = CompressedStrategy(FedAvg(), plan, ConductorConfig("127.0.0.1:1", new_key(), new_key().public)).seeded_arrays(fresh)
    assert list(drawn) == list(fresh)
    for name, array in fresh.items():
        bound = plan.bounds[name]  # type: ignore[index]  # the plan has bounds
        assert np.abs(array.numpy()).max() <= bound
        assert 0.5 * bound < np.abs(drawn[name].numpy()).max() <= bound


def test_two_lines_of_code_differ_imports_aside() -> None:
    changed = [line for name in files("plain") if name.endswith(".py") for line in differing(name)]
    added = [line for line in changed if line.startswith("+") and not line[1:].startswith(("import ", "from "))]
    assert len(added) == 2
    removed = [line for line in changed if line.startswith("-")]
    assert removed == ["-app = ClientApp()"], "the other line is new"


@pytest.mark.parametrize(
    ("strategy", "method", "optimizer"),
    [("fedavg", "average", ""), ("fedprox", "average", ""), ("fedadam", "average", "fedadam"), ("krum", "krum", "")],
)
def test_flowers_strategies_learn_in_a_twentieth_of_the_bytes(strategy: str, method: str, optimizer: str, tmp_path: Path) -> None:
    rounds = 3
    done = run_compressed(strategy, rounds, tmp_path)
    assert [(m.merge_method, m.optimizer.name, len(m.contributions)) for m in done.manifests] == [
        (method, optimizer, CLIENTS)
    ] * rounds
    found = accuracies(done.result)
    assert found[0] < 0.2
    assert found[-1] > 0.3, "chance is 0.1"
    plain_bytes = 4 * PARAMETERS * CLIENTS * 2 * rounds
    assert done.report.traffic.dense_fp32_bytes == plain_bytes
    assert 0 < done.report.traffic.payload_bytes < done.report.traffic.wire_bytes < plain_bytes / 20


def test_the_arrays_that_come_back_are_those_the_aggregator_signed_in_the_order_of_the_app(tmp_path: Path) -> None:
    done = run_compressed("fedavg", 1, tmp_path)
    arrays: dict[str, Array] = dict(done.result.arrays)
    assert list(arrays) == list(Net().state_dict())
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    layout = layout_of(shapes, dense_names(shapes, Plan.for_model(Net(), "digits").dense_if_sent))
    state = flatten(layout, {name: array.numpy() for name, array in arrays.items()})
    assert state_digest(layout, state) == done.manifests[-1].state_digest
