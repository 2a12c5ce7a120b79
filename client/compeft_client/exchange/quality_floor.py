"""A quality floor for one update: how far it may be compressed is measured on this client's own rows, each round anew.

    from compeft_client import CompressionMod, Floor

    mod = CompressionMod(floor=lambda context: Floor(0.99, lambda arrays: accuracy(arrays, context)))

The round's task says the highest density. From there it is halved as long as enough of the round's gain is retained, under whichever scale
rule retains more. What an update leaves behind waits for the next round, as always.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compeft_client.workers import WORKERS
from compeft_core import Compression, Layout, ScaleRule, Vector, compress, densify, unflatten
from compeft_core.errors import InputError
from compeft_core.parallel import workers_for

Measure = Callable[[Mapping[str, NDArray[np.float32]]], float]
RULES: tuple[ScaleRule, ...] = ("bounded_norm", "mean_magnitude")
HALVINGS = 5
"""The densities tried are the task's, its half, and so on to a 32nd."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Floor:
    """What an update must still be worth.

    retained: (compressed - synced) / (trained - synced) of the metric, above 0 and at most 1. measure: the task metric, higher is better,
    of the arrays of a state by name (float32), on rows that nobody trains on. It is called twice, then once or twice for each density.
    """

    retained: float
    measure: Measure

    def __post_init__(self) -> None:
        if not 0 < self.retained <= 1:
            raise InputError(f"a floor of {self.retained} of the gain: it must be above 0 and at most 1")


def above(floor: Floor, layout: Layout, synced: Vector, trained: Vector, target: Vector, asked: Compression) -> Compression:
    """How to compress `target`: the fewest entries that retain the floor's part of the gain from `synced` to `trained`, at most as many as
    `asked` keeps. Where not even those do, as many, by the rule that retains most; where training gained nothing, as `asked`.

    synced, trained: states, and target: task vector plus residual; float32 of shape (layout.size,).
    """
    start, whole = (floor.measure(unflatten(layout, state)) for state in (synced, trained))
    if not whole > start:
        log.warning("quality floor: training moved the metric from %g to %g, so no gain can be retained", start, whole)
        return asked

    def retained_by(settings: Compression) -> float:
        update = densify(compress(layout, target, settings, workers=workers_for(layout.size, WORKERS)))
        return (floor.measure(unflatten(layout, synced + update)) - start) / (whole - start)

    def best(settings: Compression) -> tuple[float, Compression]:
        """The first rule that retains enough, its own before the others, else the one that retains most."""
        tried = []
        for rule in dict.fromkeys((settings.scale, *RULES)):
            by_rule = replace(settings, scale=rule)
            tried.append((retained_by(by_rule), by_rule))
            if tried[-1][0] >= floor.retained:
                return tried[-1]
        return max(tried, key=lambda pair: -math.inf if math.isnan(pair[0]) else pair[0])

    retained, chosen = best(asked)
    for _ in range(HALVINGS if retained >= floor.retained else 0):
        fewer_retain, fewer = best(replace(chosen, density=chosen.density / 2))
        if not fewer_retain >= floor.retained:  # nor where it is NaN
            break
        retained, chosen = fewer_retain, fewer
    log.info("quality floor %g: density %.4g and scale %s retain %.3g", floor.retained, chosen.density, chosen.scale, retained)
    return chosen
