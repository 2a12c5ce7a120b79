"""Merge methods that are sums over the updates: average, task arithmetic, TIES, and DARE before either.

P and N are the sums of weight times magnitude over the entries + and - of a position, p and n those of the weights; all in float64 and
in the order of the inputs.
"""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from compeft_core.merging import block_kernels as kernels
from compeft_core.merging.inputs import Doubles, Entries, Inputs, Weighted, entries, scratch

Values = Callable[[int], Doubles]
"""A block's number -> its values: float64, one a position. May be called from several threads at once."""
T = TypeVar("T")
DARE_DOMAIN = b"compeft.dare.v1\0"


def signed_sum(inputs: Inputs) -> Values:
    """P - N."""
    scaled = [(u, u.weight * u.encoded.scales.astype(np.float64)) for u in inputs.updates]

    def values(block: int) -> Doubles:
        sums = tally(inputs, scaled, block)
        difference: Doubles = sums[:, 0] - sums[:, 1]
        return difference

    return values


def ties(inputs: Inputs) -> Values:
    """TIES (Yadav et al., arXiv 2306.01708) of updates that are trimmed already: of each position the sign with more mass is elected,
    and the entries that have it are averaged by weight. Equal masses elect what most positions did, as in the authors' code.
    """
    return _disjoint_means(inputs, lambda block: _masses(inputs, block))


def dare(inputs: Inputs) -> Values:
    """P - N of what DARE (Yu et al., arXiv 2311.03099) leaves of each update."""

    def values(block: int) -> Doubles:
        sums, _ = _thinned(inputs, block)
        difference: Doubles = sums[:, 0] - sums[:, 1]
        return difference

    return values


def dare_ties(inputs: Inputs) -> Values:
    """TIES of what DARE leaves of each update."""
    return _disjoint_means(inputs, lambda block: _thinned(inputs, block))


def tally(inputs: Inputs, scaled: list[tuple[Weighted, Doubles]], block: int) -> Doubles:
    """(positions, 2): sums, over the entries + and - of each position, of the value that an update has for the entry's group."""
    sums = np.zeros((inputs.span(block), 2))
    words, places = scratch()
    for (one, values_a), (two, values_b) in zip(scaled[::2], scaled[1::2], strict=False):
        a, b = one.encoded, two.encoded
        kernels.sum_two_blocks(
            a.octets,
            a.block_starts,
            a.block_counts,
            a.group_ends,
            values_a,
            b.octets,
            b.block_starts,
            b.block_counts,
            b.group_ends,
            values_b,
            a.ternary_size,
            sums,
            words,
            places,
            block,
        )
    for last, values in scaled[len(scaled) & ~1 :]:
        e = last.encoded
        kernels.sum_block(
            e.octets, e.block_starts, e.block_counts, e.ternary_size, e.group_ends, values, sums, words, places, block
        )
    return sums


def elect(sums: Doubles, majority_positive: bool) -> NDArray[np.bool_]:
    """Whether + is elected at each place."""
    plus, minus = sums[:, 0], sums[:, 1]
    elected: NDArray[np.bool_] = (plus > minus) | ((plus == minus) & majority_positive)
    return elected


def _masses(inputs: Inputs, block: int) -> tuple[Doubles, Doubles]:
    sums, masses = np.zeros((inputs.span(block), 2)), np.zeros((inputs.span(block), 2))
    words, places = scratch()
    for u in inputs.updates:
        e, values = u.encoded, u.weight * u.encoded.scales.astype(np.float64)
        kernels.tally_block(
            e.octets,
            e.block_starts,
            e.block_counts,
            e.ternary_size,
            e.group_ends,
            values,
            u.weight,
            sums,
            masses,
            words,
            places,
            block,
        )
    return sums, masses


def _thinned(inputs: Inputs, block: int) -> tuple[Doubles, Doubles]:
    """Sums and masses, as of `_masses`, of the entries that DARE keeps, their magnitudes divided by the fraction kept."""
    sums, masses = np.zeros((inputs.span(block), 2)), np.zeros((inputs.span(block), 2))
    for u in inputs.updates:
        found = entries(u.encoded, block)
        kept = _survivors(inputs, u, found, block)
        at = found.places[kept], found.negative[kept].astype(np.intp)
        sums[at] += u.weight * found.magnitudes[kept] / (1 - inputs.parameters.drop)
        masses[at] += u.weight
    return sums, masses


def _survivors(inputs: Inputs, update: Weighted, found: Entries, block: int) -> NDArray[np.bool_]:
    """Which entries stay: the i-th one of a block by the i-th word of a stream that no other update, block or seed has."""
    seed, drop = inputs.parameters.seed, inputs.parameters.drop
    stream = hashlib.shake_256(DARE_DOMAIN + seed.to_bytes(8, "little") + update.digest + block.to_bytes(4, "little"))
    words = np.frombuffer(stream.digest(4 * found.places.size), "<u4")
    kept: NDArray[np.bool_] = words >= drop * 2**32
    return kept


def _disjoint_means(inputs: Inputs, tallies: Callable[[int], tuple[Doubles, Doubles]]) -> Values:
    votes = 0
    for block in range(inputs.first.blocks):
        sums, _ = tallies(block)
        votes += int((sums[:, 0] > sums[:, 1]).sum()) - int((sums[:, 0] < sums[:, 1]).sum())
    majority_positive = votes > 0

    def values(block: int) -> Doubles:
        sums, masses = tallies(block)
        positive = elect(sums, majority_positive)
        over = np.where(positive, sums[:, 0], -sums[:, 1])
        under = np.where(positive, masses[:, 0], masses[:, 1])
        means: Doubles = np.divide(over, under, out=np.zeros_like(over), where=under > 0)
        return means

    return values
