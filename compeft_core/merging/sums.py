"""Merge methods that are sums over the updates: average, task arithmetic and TIES, each also after DARE.

P and N are the sums of weight times magnitude over the entries + and - of a position, p and n those of the weights; all in float64 and
in the order of the inputs.
"""

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from compeft_core.format.block_streams import Blocks, GroupValues, bare, scratch
from compeft_core.format.golomb import BLOCK
from compeft_core.merging import block_kernels as kernels
from compeft_core.merging.inputs import Doubles, Entries, Inputs, Weighted, entries

Values = Callable[[int], Doubles]
"""A block's number -> its values: float64, one a position. May be called from several threads at once."""
Scaled = list[tuple[Blocks, GroupValues]]
"""Streams of each update, and a value for each of its groups; both as plain tuples (`block_streams.bare`)."""
DARE_DOMAIN = b"compeft.dare.v1\0"


def signed_sum(inputs: Inputs) -> Values:
    """P - N. The memory for P and N goes from block to block; each thread takes one from `free` while it needs it."""
    scaled, free = with_values(inputs, weighted_scales), list[Doubles]()

    def values(block: int) -> Doubles:
        sums, difference = free.pop() if free else np.zeros((BLOCK, 2)), np.empty(inputs.span(block))
        add_up(scaled, sums[: difference.size], block)
        kernels.take_difference(sums, difference)
        free.append(sums)
        return difference

    return values


def ties(inputs: Inputs) -> Values:
    """TIES (Yadav et al., arXiv 2306.01708) of updates that are trimmed already: of each position the sign with more mass is elected,
    and the entries that have it are averaged by weight. Equal masses elect what most positions did, as in the authors' code.
    """
    scaled = with_values(inputs, weighted_scales)
    return _disjoint_means(inputs, lambda block: _masses(inputs, scaled, block))


def dare(inputs: Inputs) -> Values:
    """P - N of the entries that DARE (Yu et al., arXiv 2311.03099) keeps of each update."""

    def values(block: int) -> Doubles:
        sums, _ = _thinned(inputs, block)
        difference: Doubles = sums[:, 0] - sums[:, 1]
        return difference

    return values


def dare_ties(inputs: Inputs) -> Values:
    """TIES of the entries that DARE keeps of each update."""
    return _disjoint_means(inputs, lambda block: _thinned(inputs, block))


def tally(inputs: Inputs, scaled: Scaled, block: int) -> Doubles:
    """(positions, 2): for the entries + and - of each position, the sum over updates of the value of the entry's group."""
    sums = np.zeros((inputs.span(block), 2))
    add_up(scaled, sums, block)
    return sums


def add_up(scaled: Scaled, sums: Doubles, block: int) -> None:
    """Add to `sums`, (positions, 2), what `tally` sums."""
    room = bare(scratch())
    for blocks, groups in scaled:
        kernels.sum_block(blocks, groups, sums, room, block)


def with_values(inputs: Inputs, values: Callable[[Weighted], Doubles]) -> Scaled:
    """Each update's streams with a float64 value for each of its groups, in the form that `tally` takes."""
    return [(bare(u.encoded.streams), bare(GroupValues(u.encoded.group_ends, values(u)))) for u in inputs.updates]


def weighted_scales(update: Weighted) -> Doubles:
    """Weight times scale, of each group."""
    return update.weight * update.encoded.scales.astype(np.float64)


def elect(sums: Doubles, majority_positive: bool) -> NDArray[np.bool_]:
    """Whether the sign + is elected at each place: bool of shape (positions,)."""
    plus, minus = sums[:, 0], sums[:, 1]
    elected: NDArray[np.bool_] = (plus > minus) | ((plus == minus) & majority_positive)
    return elected


def _masses(inputs: Inputs, scaled: Scaled, block: int) -> Doubles:
    """(2, positions, 2): P and N of each position, then p and n."""
    tallies, room = np.zeros((2, inputs.span(block), 2)), bare(scratch())
    for u, (blocks, groups) in zip(inputs.updates, scaled, strict=True):
        kernels.tally_block(blocks, groups, u.weight, tallies, room, block)
    return tallies


def _thinned(inputs: Inputs, block: int) -> Doubles:
    """As `_masses`, of the entries that DARE keeps, their magnitudes divided by the fraction kept."""
    tallies = np.zeros((2, inputs.span(block), 2))
    for u in inputs.updates:
        found = entries(u.encoded, block)
        kept = _survivors(inputs, u, found, block)
        at = found.places[kept], found.negative[kept].astype(np.intp)
        tallies[0][at] += u.weight * found.magnitudes[kept] / (1 - inputs.parameters.drop)
        tallies[1][at] += u.weight
    return tallies


def _survivors(inputs: Inputs, update: Weighted, found: Entries, block: int) -> NDArray[np.bool_]:
    """Which entries DARE keeps: entry i of a block by word i of a SHAKE-256 stream keyed by seed, update and block."""
    seed, drop = inputs.parameters.seed, inputs.parameters.drop
    stream = hashlib.shake_256(DARE_DOMAIN + seed.to_bytes(8, "little") + update.digest + block.to_bytes(4, "little"))
    words = np.frombuffer(stream.digest(4 * found.places.size), "<u4")
    kept: NDArray[np.bool_] = words >= drop * 2**32
    return kept


def _disjoint_means(inputs: Inputs, tallies: Callable[[int], Doubles]) -> Values:
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
