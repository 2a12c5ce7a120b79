"""Which weights compose experts best for a task, by its loss on a few labelled examples alone: LoraHub's search, at the edge.

    from compeft_client import ExpertPool, blend

    pool = ExpertPool(model, init="./untrained")
    ...
    found = blend(pool, ["berlin", "paris"], lambda: loss_of(model, few_examples))
    with pool.using(found.weights):
        model(...)

LoraHub (Huang et al. 2023, arXiv 2307.13269): no gradient and no training. Some dozens of compositions are tried, and the one of least
loss, with a penalty on the mean magnitude of the weights, is kept. Here the plain ones are tried first, so that on the examples given the
one found is never worse than the best of them. `search` knows neither models nor files.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compeft_core.errors import InputError, NotFiniteError

if TYPE_CHECKING:
    from cmaes import CMA

    from compeft_client.models.expert_pool import ExpertPool

Weights = Mapping[str, float]
FIRST_STEP = 0.3
"""Standard deviation of the optimiser's first steps, over the bound: of all weights together, whatever their number."""
DIGITS = 4
"""Weights are rounded to this many decimals before they are tried: what is printed is what was measured."""
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, slots=True)
class BlendSettings:
    """How to search; the defaults are LoraHub's.

    steps: compositions to ask the optimiser for, after the plain ones.   penalty: times the mean of abs(weight), added to the loss.
    bound: the optimiser's weights lie in [-bound, bound].   seed: of its random numbers.

    Errors: InputError for what is out of range.
    """

    steps: int = 40
    penalty: float = 0.05
    bound: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}, it must be at least 1")
        if not (math.isfinite(self.penalty) and self.penalty >= 0):
            raise InputError(f"penalty is {self.penalty}, it must be a finite number, at least 0")
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise InputError(f"bound is {self.bound}, it must be a finite number above 0")
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"seed is {self.seed}, it must be from 0 to {MAX_SEED}")


USUAL = BlendSettings()


@dataclass(frozen=True, slots=True)
class Trial:
    """One composition that was tried: its loss, and `objective`, the loss and the penalty."""

    weights: Weights
    loss: float
    objective: float


@dataclass(frozen=True, slots=True)
class Blend:
    """What a search found, and all that it tried: the plain compositions in the order of `plain`, then the optimiser's.

    On the examples that the loss was computed from, `loss` is at most that of any plain composition. On others nothing is promised.
    """

    weights: Weights
    loss: float
    history: Sequence[Trial]


def blend(pool: "ExpertPool", names: Sequence[str], loss: Callable[[], float], settings: BlendSettings = USUAL) -> Blend:
    """Search with the pool's model as the judge: `loss` is called with each composition active, and says its loss, lower is better.

    The pool has the composition that it had before when this returns or raises. Other threads may use it between two trials.
    Same seed, same losses: same result. Errors: those of `search`, of activating, and whatever `loss` raises.
    """
    before = pool.active

    def tried(weights: Weights) -> float:
        with pool.using(weights):
            return loss()

    try:
        return search(names, tried, settings)
    finally:
        if before:
            pool.activate(before)


def search(names: Sequence[str], loss: Callable[[Weights], float], settings: BlendSettings = USUAL) -> Blend:
    """The weights of least loss + penalty among those tried whose loss is at most that of any plain composition.

    Errors: InputError if fewer than two experts or one twice are named, or cmaes is missing; NotFiniteError on a loss that is NaN or
    infinite.
    """
    if len(names) < 2:
        raise InputError(f"{len(names)} experts named, blending needs two at least")
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise InputError(f"expert {twice[0][:40]!a} is named twice")
    begin = _optimiser()
    history = [_trial(loss, weights, settings) for weights in plain(names)]
    least, first = min(trial.loss for trial in history), min(history, key=_objective)
    optimiser, told = begin([first.weights[name] for name in names], settings), []
    for _ in range(settings.steps):
        asked = optimiser.ask()
        weights = {name: round(float(value), DIGITS) for name, value in zip(names, asked, strict=True)}
        history.append(_trial(loss, weights, settings))
        told.append((asked, history[-1].objective))
        if len(told) == optimiser.population_size:
            optimiser.tell(told)
            told = []
    best = min((trial for trial in history if trial.loss <= least), key=_objective)
    return Blend(best.weights, best.loss, history)


def plain(names: Sequence[str]) -> list[Weights]:
    """What is tried first: no expert (where they all started, which computes what the base model does), each alone, the mean of all."""
    nothing = dict.fromkeys(names, 0.0)
    alone = [{**nothing, name: 1.0} for name in names]
    return [nothing, *alone, dict.fromkeys(names, round(1 / len(names), DIGITS))]


def _objective(trial: Trial) -> float:
    return trial.objective


def _trial(loss: Callable[[Weights], float], weights: Weights, settings: BlendSettings) -> Trial:
    value = float(loss(weights))
    if not math.isfinite(value):
        raise NotFiniteError(f"the loss of {', '.join(f'{name} {weight:g}' for name, weight in weights.items())} is {value}")
    magnitude = math.fsum(map(abs, weights.values())) / len(weights)
    return Trial(weights, value, value + settings.penalty * magnitude)


def _optimiser() -> Callable[[Sequence[float], BlendSettings], "CMA"]:
    """CMA-ES, to be begun at some weights. Imported here because it brings in scipy, for which no other command should wait."""
    try:
        from cmaes import CMA
    except ModuleNotFoundError as error:
        raise InputError("blending needs cmaes: pip install 'compeft[client]'") from error

    def begin(weights: Sequence[float], settings: BlendSettings) -> CMA:
        bound = settings.bound
        mean, deviation = np.clip(weights, -bound, bound), FIRST_STEP * bound / math.sqrt(len(weights))
        return CMA(mean, deviation, bounds=np.array([[-bound, bound]] * len(weights)), seed=settings.seed)

    return begin
