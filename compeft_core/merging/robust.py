"""Merge methods that are robust against a minority of hostile updates: majority of signs, trimmed mean, median, and Krum.

A client's own claims (a scale, a number of examples) have no effect on the trimmed mean, the median or Krum's choice, and only the effect
of its weight on the majority. In the ternary part a zero is a value like any other.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError
from compeft_core.format.block_streams import bare, scratch
from compeft_core.format.golomb import BLOCK
from compeft_core.merging import block_kernels as kernels
from compeft_core.merging.inputs import (
    Doubles,
    Inputs,
    MergeParameters,
    dense_rows,
    entries,
    normal,
    scales_at,
    segment_ends,
)
from compeft_core.merging.sums import Values, tally, with_values

MOST_ENTRIES = 1 << 22
"""Entries, or dense values, that are sorted at a time."""


def sign_majority(inputs: Inputs) -> Values:
    """SignSGD with majority vote (Bernstein et al., arXiv 1802.04434), zeros abstaining: the sign that wins by more than the quorum,
    times the median of the scales that the updates have there.
    """
    unit = with_values(inputs, lambda u: np.full(u.encoded.scales.size, u.weight))
    ends = segment_ends(inputs)

    def values(block: int) -> Doubles:
        votes = tally(inputs, unit, block)
        lead = votes[:, 0] - votes[:, 1]
        won: Doubles = np.where(np.abs(lead) > inputs.parameters.quorum, np.sign(lead), 0.0) * _median_scales(inputs, ends, block)
        return won

    return values


def trimmed_mean(inputs: Inputs) -> Values:
    """Coordinate-wise trimmed mean (Yin et al., arXiv 1803.01498), every update counting once."""
    return _middle_means(inputs, trimmed(len(inputs.updates), inputs.parameters))


def median(inputs: Inputs) -> Values:
    """Coordinate-wise median (Yin et al.), every update counting once; of an even number, the mean of the two in the middle."""
    return _middle_means(inputs, (len(inputs.updates) - 1) // 2)


def dense_trimmed_mean(inputs: Inputs) -> Doubles:
    """The same of the dense parts."""
    return _dense_middle(inputs, trimmed(len(inputs.updates), inputs.parameters))


def dense_median(inputs: Inputs) -> Doubles:
    """The same of the dense parts."""
    return _dense_middle(inputs, (len(inputs.updates) - 1) // 2)


def trimmed(count: int, parameters: MergeParameters) -> int:
    """How many of `count` values are left out at either end."""
    return math.floor(parameters.trim * count)


def krum(inputs: Inputs) -> Inputs:
    """The one update that Krum (Blanchard et al., NeurIPS 2017) chooses: the least sum of squared distances to its nearest.

    Of n updates, f of them hostile, those are the n - f - 2 nearest others. Errors: InputError if n is below 2 f + 3 and f not 0.
    """
    return _nearest(inputs, 1)


def multi_krum(inputs: Inputs) -> Inputs:
    """The updates with the least sums, as many as `keep` says. Errors: as `krum`; InputError if there are fewer."""
    count, keep = len(inputs.updates), inputs.parameters.keep
    if keep > count:
        raise InputError(f"multi_krum is to keep {keep} updates, but got {count}: lower `keep`")
    return _nearest(inputs, keep or max(1, count - inputs.parameters.byzantine - 2))


def squared_distances(inputs: Inputs) -> Doubles:
    """(n, n) squared distances between updates, in float64, from counts of agreeing and opposing entries; nothing is made dense."""
    count, ends = len(inputs.updates), segment_ends(inputs)
    distances, net, segment = np.zeros((count, count)), np.zeros((count, count), np.int64), 0
    plus, minus = np.zeros((2, count, BLOCK // 64), np.uint64)
    room, streams = bare(scratch()), [bare(u.encoded.streams) for u in inputs.updates]
    for block in range(inputs.first.blocks):
        for i, blocks in enumerate(streams):
            kernels.mark_block(blocks, room, plus[i], minus[i], block)
        at, stop = 0, inputs.span(block)
        while at < stop:
            until = min(stop, int(ends[segment]) - block * BLOCK)
            kernels.count_pairs(plus, minus, at, until, net)
            at = until
            if block * BLOCK + at == ends[segment]:
                distances += _apart(net, [float(scales_at(u.encoded, ends[segment : segment + 1])[0]) for u in inputs.updates])
                net[:] = 0
                segment += 1
    return _symmetric(distances + _dense_apart(inputs))


def _nearest(inputs: Inputs, keep: int) -> Inputs:
    count, hostile = len(inputs.updates), inputs.parameters.byzantine
    if hostile and count < 2 * hostile + 3:
        raise InputError(
            f"krum needs {2 * hostile + 3} updates to withstand {hostile} hostile ones, but got {count}: "
            "lower `byzantine`, or merge by trimmed_mean or sign_majority"
        )
    neighbours = min(count - 1, max(1, count - hostile - 2))
    distances = squared_distances(inputs)
    scores = [math.fsum(sorted(np.delete(distances[i], i).tolist())[:neighbours]) for i in range(count)]
    chosen = sorted(sorted(range(count), key=lambda i: (scores[i], i))[:keep])
    return normal(Inputs(tuple(inputs.updates[i] for i in chosen), inputs.parameters))


def _apart(net: NDArray[np.int64], scales: list[float]) -> Doubles:
    """Squared distances within one segment: n_a s_a^2 + n_b s_b^2 - 2 s_a s_b (agreeing less opposing); above the diagonal."""
    s, count = np.array(scales), np.diagonal(net).astype(np.float64)
    own, products = count * (s * s), np.outer(s, s)
    apart: Doubles = (own[:, None] + own[None, :]) - 2.0 * (products * net)
    return apart


def _dense_apart(inputs: Inputs) -> Doubles:
    count = len(inputs.updates)
    apart = np.zeros((count, count))
    if not inputs.first.dense_size:
        return apart
    for a in range(count):
        one = inputs.updates[a].encoded.dense
        for b in range(a + 1, count):
            apart[a, b] = kernels.squared_distance(one, inputs.updates[b].encoded.dense)
    return apart


def _symmetric(distances: Doubles) -> Doubles:
    upper = np.triu(np.maximum(distances, 0.0), 1)
    return upper + upper.T


def _median_scales(inputs: Inputs, ends: NDArray[np.int64], block: int) -> Doubles:
    """The median over updates of the scale at each position of a block."""
    base, span = block * BLOCK, inputs.span(block)
    first, last = (int(i) for i in np.searchsorted(ends, [base, base + span - 1], side="right"))
    within = ends[first : last + 1]
    rows = np.sort(np.stack([scales_at(u.encoded, within).astype(np.float64) for u in inputs.updates]), axis=0)
    medians = (rows[(len(rows) - 1) // 2] + rows[len(rows) // 2]) / 2
    return np.repeat(medians, np.diff(np.minimum(within, base + span), prepend=base))


def _middle_means(inputs: Inputs, left_out: int) -> Values:
    """Of the n values of a position, sorted: the mean of all but `left_out` at either end. The sum goes from the least up."""

    def values(block: int) -> Doubles:
        pieces = 1 + sum(int(u.encoded.block_counts[block]) for u in inputs.updates) // MOST_ENTRIES
        edges = [inputs.span(block) * i // pieces for i in range(pieces + 1)]
        return np.concatenate([_middle_piece(inputs, left_out, block, a, b) for a, b in pairwise(edges)])

    return values


def _middle_piece(inputs: Inputs, left_out: int, block: int, first: int, last: int) -> Doubles:
    places, values = _entries_within(inputs, block, first, last)
    order = np.lexsort((values, places))
    places, values = places[order], values[order]
    held = np.bincount(places, minlength=last - first)
    rank = np.arange(places.size) - np.repeat(np.cumsum(held) - held, held)
    rank += np.where(values > 0, len(inputs.updates) - held[places], 0)
    middle = (rank >= left_out) & (rank < len(inputs.updates) - left_out)
    sums = np.bincount(places[middle], values[middle], minlength=last - first)
    means: Doubles = sums / (len(inputs.updates) - 2 * left_out)
    return means


def _entries_within(inputs: Inputs, block: int, first: int, last: int) -> tuple[NDArray[np.int64], Doubles]:
    """Places, counted from `first`, and values of all updates' entries at places first..last of a block."""
    places, values = list[NDArray[np.int64]](), list[Doubles]()
    for u in inputs.updates:
        found = entries(u.encoded, block)
        within = slice(*np.searchsorted(found.places, [first, last]))
        places.append(found.places[within] - first)
        values.append(found.values[within])
    return np.concatenate(places), np.concatenate(values)


def _dense_middle(inputs: Inputs, left_out: int) -> Doubles:
    size, width = inputs.first.dense_size, max(1, MOST_ENTRIES // len(inputs.updates))
    count = len(inputs.updates)
    result = np.zeros(size)
    for at in range(0, size, width):
        rows = np.sort(dense_rows(inputs, slice(at, at + width)), axis=0)[left_out : count - left_out]
        for row in rows:
            result[at : at + width] += row
    means: Doubles = result / (count - 2 * left_out)
    return means


Choose = Callable[[Inputs], Inputs]
"""Inputs -> the inputs that a method merges."""
