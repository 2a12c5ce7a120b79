"""Small Flower apps end where plain FedAvg ends them if arrays travel whole, and near it at 5 %."""

from collections.abc import Iterator

import pytest
from flwr.supercore.task_identity import TaskIdentity

from compeft_core import Compression
from tests.rounds.conftest import World
from tests.rounds.parity.__main__ import WHOLE, farthest, ours, plain
from tests.rounds.parity.apps import APPS, App


@pytest.fixture(autouse=True)
def flower_task() -> Iterator[None]:
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


@pytest.mark.parametrize("app", APPS, ids=lambda app: app.name)
def test_an_app_whose_arrays_travel_whole_ends_where_plain_fedavg_ends(world: World, app: App) -> None:
    whole, _ = ours(world, app, 2, WHOLE, WHOLE)
    assert farthest(whole, plain(app, 2), app.begun()) < 0.01, "bfloat16 rounds each update to 0.2 % of itself"


def test_a_cnn_with_batchnorm_learns_at_five_percent_and_its_variances_stay_positive(world: World) -> None:
    app = APPS[0]
    sparse, payload_bytes = ours(world, app, 4, Compression(0.05), Compression(0.1))
    assert app.accuracy(sparse) > app.accuracy(plain(app, 4)) - 0.25
    assert min(float(a.numpy().min()) for n, a in sparse.items() if n.endswith("running_var")) > 0
    version_0 = 3 * 6_000 * 4  # without a seed it travels once to each of the three clients, coded without loss
    assert 0 < payload_bytes < version_0 + 4 * 6_000 * 3 * 2 * 4 / 8
