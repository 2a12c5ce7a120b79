"""The arithmetic of an update: from a trained task vector and the residual to the bytes that travel. No files, no connection.

    target  = task vector (zero where the round rests, heads centred) + residual; in a private round clipped, and with local noise on every
              value
    limited = target, so that no dense value is rounded over zero and no variance becomes negative
    encoded = compress(limited), by the round's settings, at a lower density if it would exceed `most_bytes`

What `encoded` leaves of `target` is the next residual.
"""

from dataclasses import dataclass

import numpy as np

from compeft_client.exchange.quality_floor import Floor, above
from compeft_core import Compression, Encoded, Layout, Vector
from compeft_core.budget import payload_bytes
from compeft_core.centred_heads import centred
from compeft_core.errors import InputError, LayoutMismatchError
from compeft_core.format.encoding import sooner_codec
from compeft_core.frozen_tensors import active_places, share_of_active
from compeft_core.privacy.clipping import Noise, clipped, noised
from compeft_core.privacy.terms import ClientPrivacy
from compeft_core.statistics import kept_in_range
from compeft_proto.convert import coded
from compeft_proto.privacy_terms import FreshSeed, fresh_seed
from compeft_proto.round_task import AUTO, RoundTask

ROUNDING, TINY = np.float32(2**-8), np.float32(2**-24)
"""What loading a state into a bfloat16 or float16 adapter may change, in relation to a value and beside it."""


@dataclass(frozen=True, slots=True)
class UpdateLimits:
    """What a client's site allows. most_bytes: of one update; most_seconds: of its upload at the rate of the one before, in bytes per
    second (0: none was measured). None and 0 do not limit.
    """

    most_bytes: int | None = None
    most_seconds: float | None = None
    bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class CodedUpdate:
    """An update and what it was made from. target: float32 of shape (layout.size,); encoded: what travels of it, made by `compression`;
    within_clip: in a private round, whether the target was within the clip before it was clipped.
    """

    target: Vector
    compression: Compression
    encoded: Encoded
    within_clip: bool = True


def coded_update(
    layout: Layout,
    task: RoundTask,
    vectors: tuple[Vector, Vector, Vector],
    limits: UpdateLimits,
    workers: int,
    floor: Floor | None = None,
    fresh: FreshSeed = fresh_seed,
) -> CodedUpdate:
    """The update of one round. fresh: 32 secret bytes for local noise.

    vectors: the task vector, the residual, and the synced state that training began with; float32 of shape (layout.size,).
    Errors: LayoutMismatchError for a task vector of another length; InputError if training changed a tensor that rests;
    NotFiniteError; those of `compeft_core.budget.filled`.
    """
    trained, residual, synced = vectors
    active, within = centred(layout, active_part(layout, task, trained, synced), task.centred), True
    if task.privacy is None:
        target = active + residual
    else:
        target, within = private_target(task.privacy, active, residual, fresh)
        _check_floor(task.privacy, floor)
    wanted = np.where(active_places(layout, task.resting), target, np.float32(0)) if task.resting else target
    wanted = kept_in_range(layout, synced, wanted)
    asked = share_of_active(layout, task.compression, task.resting)
    codec = sooner_codec(asked.density, limits.bytes_per_s, workers) if task.codec == AUTO else task.codec
    used, encoded = coded(layout, wanted, asked, codec, workers, most_bytes(layout, task, limits))
    if floor is not None:
        goal = above(floor, layout, synced, synced + trained, wanted, used)
        used, encoded = (used, encoded) if goal == used else coded(layout, wanted, goal, codec, workers)
    return CodedUpdate(target, used, encoded, within)


def private_target(terms: ClientPrivacy, active: Vector, residual: Vector, fresh: FreshSeed) -> tuple[Vector, bool]:
    """What a client contributes to a private round before compression, float32, and whether it was within the clip: the task vector, and
    the residual if the terms carry it, clipped together; then local noise on every value. What follows is post-processing.
    """
    target, within = clipped(active + residual if terms.residual else active, terms.clip)
    if terms.where == "local":
        target = noised(target, Noise(terms.clip, terms.noise_multiplier, fresh()))
    return target, within


def _check_floor(terms: ClientPrivacy, floor: Floor | None) -> None:
    if floor is not None and terms.where == "local":
        raise InputError(
            "a quality floor chooses the density by this client's own rows, which local noise does not cover: leave it out"
        )


def most_bytes(layout: Layout, task: RoundTask, limits: UpdateLimits) -> int:
    """Most bytes that an update may take in this round, 0 if nothing limits it.

    Before anything was uploaded no rate is known. A rate that is too low for the smallest update allows that one, or a link that recovers
    would never be measured again.
    """
    found = [most for most in (task.max_payload_bytes, limits.most_bytes) if most]
    if limits.most_seconds is not None and limits.bytes_per_s:
        least = payload_bytes(layout.ternary_size, layout.dense_size, 0)
        found.append(max(least, int(limits.most_seconds * limits.bytes_per_s)))
    return min(found, default=0)


def active_part(layout: Layout, task: RoundTask, trained: Vector, synced: Vector) -> Vector:
    """The task vector, zero where the round rests.

    Errors: LayoutMismatchError; InputError if training changed what rests, beyond the rounding of a 16-bit adapter: then the average would
    not be the exact one that was asked for.
    """
    if trained.shape != (layout.size,):
        raise LayoutMismatchError(f"task vector has shape {trained.shape}, the layout says ({layout.size},)")
    if not task.resting:
        return trained
    active = active_places(layout, task.resting)
    changed = int(np.count_nonzero(np.abs(trained[~active]) > np.abs(synced[~active]) * ROUNDING + TINY))
    if changed:
        raise InputError(
            f"round {task.round} rests {', '.join(task.resting)}, but training changed {changed} parameters there: "
            "freeze them (compeft_client.models.adapter.rest)"
        )
    return np.where(active, trained, np.float32(0))
