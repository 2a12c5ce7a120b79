"""Blending: what the search promises, and that it leaves a pool on a real PEFT model as it was."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from compeft_client.models.adapter import adapter_arrays, load_adapter
from compeft_client.models.expert_pool import ExpertPool
from compeft_client.packing.pack import PackSettings, save_compressed
from compeft_client.search.blend import Blend, BlendSettings, Weights, blend, plain, search
from compeft_core.errors import InputError, NotFiniteError
from tests.client.models.test_adapter import model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.tensor([[1, 2, 3, 4], [9, 8, 7, 6], [30, 31, 5, 12]])
NAMES = ["berlin", "paris", "tokyo"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three packed experts and their `start`: berlin learned the first layer's half of a task, paris the other, tokyo another task."""
    folder, tuned = tmp_path_factory.mktemp("experts"), model()
    tuned.save_pretrained(folder / "start", save_embedding_layers=False)
    start, made = adapter_arrays(tuned), {"start": folder / "start"}
    learned = {"berlin": (0, ".layer.0."), "paris": (0, ".layer.1."), "tokyo": (1, ".layer.")}
    for name, (task, layers) in learned.items():
        random = np.random.default_rng(task)
        change = {n: (0.3 * random.choice([-1, 1], a.shape)).astype(np.float32) for n, a in start.items()}
        load_adapter(tuned, {n: a + (change[n] if layers in n else 0) for n, a in start.items()})
        tuned.save_pretrained(folder / name, save_embedding_layers=False)
        made[name] = folder / f"{name}.expert"
        save_compressed(folder / name, made[name], PackSettings(0.5, init=str(folder / "start")))
    return made


@pytest.fixture
def peft() -> PeftModel:
    return model()


@pytest.fixture
def pool(files: dict[str, Path], peft: PeftModel) -> ExpertPool:
    pool = ExpertPool(peft, init=str(files["start"]))
    for name in NAMES:
        pool.add(name, files[name])
    return pool


def output(peft: PeftModel) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = peft(input_ids=IDS).last_hidden_state
    return result


def distance_to(weights: Weights, pool: ExpertPool, peft: PeftModel) -> Callable[[], float]:
    """A loss that is 0 where the model computes what it does with this composition."""
    with pool.using(weights):
        wanted = output(peft)
    return lambda: float((output(peft) - wanted).square().mean())


def test_two_halves_of_a_task_are_put_together(pool: ExpertPool, peft: PeftModel) -> None:
    loss = distance_to({"berlin": 1.0, "paris": 1.0}, pool, peft)
    found = blend(pool, NAMES, loss, BlendSettings(steps=80, penalty=0.0))
    plain_losses = [trial.loss for trial in found.history[: len(plain(NAMES))]]
    assert found.loss < 0.3 * min(plain_losses)
    assert found.weights["berlin"] > 0.5
    assert found.weights["paris"] > 0.5
    assert abs(found.weights["tokyo"]) < 0.5
    with pool.using(found.weights):
        assert loss() == found.loss


def test_an_expert_that_points_the_wrong_way_is_subtracted(pool: ExpertPool, peft: PeftModel) -> None:
    found = blend(pool, NAMES, distance_to({"tokyo": -0.8}, pool, peft))
    assert found.weights["tokyo"] < -0.2


def test_the_same_seed_finds_the_same_and_another_tries_others(pool: ExpertPool, peft: PeftModel) -> None:
    loss = distance_to({"berlin": 0.7, "paris": 0.2}, pool, peft)
    first, again, other = (blend(pool, NAMES, loss, BlendSettings(steps=10, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first.history[: len(plain(NAMES))] == other.history[: len(plain(NAMES))]
    assert first.history != other.history


def test_random_numbers_of_others_neither_matter_nor_change() -> None:
    def found() -> Blend:
        return search(NAMES, lambda weights: abs(weights["paris"] - 0.4), BlendSettings(steps=10))

    np.random.seed(1)
    state = np.random.get_state()[1].tolist()  # type: ignore[union-attr,index]  # the legacy state is a tuple
    first = found()
    assert np.random.get_state()[1].tolist() == state  # type: ignore[union-attr,index]  # the same
    np.random.seed(2)
    assert found() == first


@pytest.mark.parametrize("before", [{}, {"berlin": 1.0}, {"paris": 0.5, "tokyo": -1.0}])
def test_the_pool_is_left_as_it_was(before: dict[str, float], pool: ExpertPool, peft: PeftModel) -> None:
    if before:
        pool.activate(before)
    wanted = output(peft)
    blend(pool, NAMES, distance_to_base(peft), BlendSettings(steps=3))
    assert pool.active == before
    assert torch.equal(output(peft), wanted)

    calls = iter(range(6))

    def failing() -> float:
        if next(calls) == 5:
            raise RuntimeError("the examples are gone")
        return 1.0

    with pytest.raises(RuntimeError, match="examples are gone"):
        blend(pool, NAMES, failing)
    assert pool.active == before
    assert torch.equal(output(peft), wanted)


def distance_to_base(peft: PeftModel) -> Callable[[], float]:
    with peft.disable_adapter():
        base = output(peft)
    return lambda: float((output(peft) - base).square().mean())


def test_without_any_expert_is_tried_and_is_the_base_model(pool: ExpertPool, peft: PeftModel) -> None:
    found = blend(pool, NAMES, distance_to_base(peft), BlendSettings(steps=5))
    assert found.history[0].weights == dict.fromkeys(NAMES, 0.0)
    assert found.loss == found.history[0].loss == 0.0


def test_the_plain_compositions_are_tried_first() -> None:
    tried: list[Weights] = []
    search(["a", "b"], lambda weights: tried.append(weights) or 1.0, BlendSettings(steps=2))  # type: ignore[func-returns-value]  # appends
    assert tried[:4] == [{"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 0.5}]
    assert len(tried) == 4 + 2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [0.0, 0.05, 5.0])
def test_the_loss_is_never_above_that_of_a_plain_composition(seed: int, penalty: float) -> None:
    random = np.random.default_rng(seed)
    losses = {"plain": math.inf}

    def loss(weights: Weights) -> float:
        value = float(random.uniform(0, 1))
        if weights in plain(NAMES):
            losses["plain"] = min(losses["plain"], value)
        return value

    found = search(NAMES, loss, BlendSettings(penalty=penalty, seed=seed))
    assert found.loss <= losses["plain"]
    allowed = [trial.objective for trial in found.history if trial.loss <= losses["plain"]]
    assert found.loss + penalty * np.mean(np.abs(list(found.weights.values()))) == pytest.approx(min(allowed))


def test_a_penalty_makes_weights_smaller() -> None:
    def loss(weights: Weights) -> float:
        return (weights["a"] - 1.0) ** 2 + (weights["b"] - 1.0) ** 2

    light, heavy = (search(["a", "b"], loss, BlendSettings(steps=200, penalty=penalty)).weights for penalty in (0.0, 1.0))
    assert light == pytest.approx({"a": 1.0, "b": 1.0}, abs=0.02)
    assert heavy == pytest.approx({"a": 0.75, "b": 0.75}, abs=0.02)


def test_the_optimisers_weights_lie_within_the_bound() -> None:
    found = search(NAMES, lambda weights: -sum(weights.values()), BlendSettings(penalty=0.0, bound=0.5))
    asked = found.history[len(plain(NAMES)) :]
    assert max(abs(weight) for trial in asked for weight in trial.weights.values()) <= 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [("bound", 0.0), ("bound", -1.0), ("bound", math.nan), ("penalty", -0.1), ("penalty", math.inf), ("steps", 0), ("seed", -1)],
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{field} is "):
        BlendSettings(**{field: value})  # type: ignore[arg-type]  # on purpose


def test_what_cannot_be_blended_is_refused(pool: ExpertPool) -> None:
    with pytest.raises(InputError, match="0 experts named"):
        blend(pool, [], lambda: 1.0)
    with pytest.raises(InputError, match="1 experts named"):
        blend(pool, ["berlin"], lambda: 1.0)
    with pytest.raises(InputError, match="'paris' is named twice"):
        blend(pool, ["paris", "berlin", "paris"], lambda: 1.0)
    with pytest.raises(InputError, match="no expert 'rome' in this pool"):
        blend(pool, ["berlin", "rome"], lambda: 1.0)


def test_without_the_optimiser_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(InputError, match="pip install"):
        search(["a", "b"], lambda _: pytest.fail("tried"))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_refused(wrong: float, pool: ExpertPool) -> None:
    with pytest.raises(NotFiniteError, match=f"the loss of berlin 0, paris 0 is {wrong}"):
        blend(pool, ["berlin", "paris"], lambda: wrong)
    assert pool.active == {}
