"""The largest magnitudes of a float32 vector, exactly, without sorting it.

A sample guesses a narrow bracket around the threshold. One pass sums the vector and collects all that is above the bracket or in
it; two histograms of what is in it, upper 16 bits then lower 15, give the threshold to the last bit and how many entries tie with
it, and what falls short is dropped. A guess that misses costs time, never a different result: the histograms are then taken of
the whole vector, and the candidates collected again.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core import selection_kernels
from compeft_core.parallel import MAGNITUDE, shares, spread

SAMPLE = 1 << 16
MARGIN = 4
"""Half width of the bracket in standard deviations of the sample's rank."""
LEAST = 1
"""Bits of the least magnitude that is not zero."""
Ints = NDArray[np.int64]
Bits = NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Groups, given by their ends, cut into pieces of at most SPAN values: piece s is starts[s]..stops[s], of `group[s]`."""

    starts: Ints
    stops: Ints
    group: Ints

    def total(self, sums: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
        """Sum of the pieces of each group, one after the other (`np.add.at` keeps the order)."""
        totals = np.zeros(groups, np.float64)
        np.add.at(totals, self.group, sums)
        return totals


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One worker's candidates: the `found` first of `positions` and `negative`.

    Not sure to be kept are those with an index in `doubtful`; `words` are the bits of their magnitudes. There was no room for all
    of them if it is not whole.
    """

    positions: Bits
    negative: NDArray[np.bool_]
    found: int
    doubtful: Bits
    words: Bits
    is_whole: bool

    @property
    def sure(self) -> int:
        """Candidates that are kept."""
        return self.found - self.words.size


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """The sums of each span, of values and of squares, and the candidates; no parts if the guess missed."""

    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    parts: list[Part]


@dataclass(frozen=True, slots=True)
class Bracket:
    """Magnitude bits least..most that the threshold probably lies in; at most how many candidates there are, and doubtful ones."""

    least: int
    most: int
    candidates: int
    doubtful: int


def spans_of(ends: Ints) -> Spans:
    """The spans of non-empty groups that end at `ends`."""
    begins = np.concatenate([np.zeros(1, np.int64), ends])[: ends.size]
    pieces = -(-(ends - begins) // selection_kernels.SPAN)
    group = np.repeat(np.arange(ends.size), pieces)
    within = np.arange(group.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = begins[group] + within * selection_kernels.SPAN
    return Spans(starts, np.minimum(starts + selection_kernels.SPAN, ends[group]), group)


def survey(bits: Bits, spans: Spans, wanted: int, workers: int) -> Survey:
    """Sum the spans of a vector and gather the candidates for its `wanted` largest magnitudes, in one pass."""
    bracket = _guess(bits, wanted)
    sums, squares = np.zeros((2, spans.group.size), np.float64)

    def look(first: int, last: int) -> Part:
        size = int(spans.stops[last - 1] - spans.starts[first])
        room = _Room(min(bracket.candidates, size), min(bracket.doubtful, size))
        return room.part(
            *selection_kernels.survey(
                bits, spans.starts, spans.stops, sums, squares, (bracket.least, bracket.most), *room.arrays, first, last
            )
        )

    parts = spread(look, shares(spans.group.size, workers))
    sure, found = sum(p.sure for p in parts), sum(p.found for p in parts)
    hit = sure < wanted <= found or (bracket.least == LEAST and found <= wanted)
    return Survey(sums, squares, parts if hit and all(p.is_whole for p in parts) else [])


def select(bits: Bits, parts: list[Part], wanted: int, workers: int) -> tuple[Bits, NDArray[np.bool_]]:
    """Positions, increasing, and signs of the `wanted` largest magnitudes; of those that tie for the last places, the first ones.

    Never an exact zero, so fewer than `wanted` if there are fewer others. `parts` are those of `survey`.
    """
    if parts and sum(p.found for p in parts) <= wanted:
        threshold = _Threshold(LEAST, wanted, 0)
    elif parts:
        threshold = _threshold([p.words for p in parts], wanted - sum(p.sure for p in parts))
    else:
        ranges = shares(bits.size, workers)
        threshold = _threshold([bits[first:last] for first, last in ranges], wanted)
        parts = _collect(bits, threshold, ranges)
    quotas = _quotas([int((p.words == threshold.magnitude).sum()) for p in parts], threshold.ties)

    def settle(part: Part, quota: int) -> int:
        return selection_kernels.settle(
            part.positions, part.negative, part.found, part.doubtful, part.words, threshold.magnitude, quota
        )

    sizes = spread(settle, list(zip(parts, quotas, strict=True)))
    positions = [p.positions[:size] for p, size in zip(parts, sizes, strict=True)]
    negative = [p.negative[:size] for p, size in zip(parts, sizes, strict=True)]
    return (positions[0], negative[0]) if len(parts) == 1 else (np.concatenate(positions), np.concatenate(negative))


@dataclass(frozen=True, slots=True)
class _Threshold:
    """Bits of the least magnitude kept, never 0; how many of those that equal it are kept, and how many are greater."""

    magnitude: int
    ties: int
    above: int


class _Room:
    """Arrays for so many candidates. Untouched memory costs nothing, so each part has room for all of the vector's."""

    def __init__(self, candidates: int, doubtful: int) -> None:
        self.positions, self.negative = np.empty(candidates, np.uint32), np.empty(candidates, np.bool_)
        self.doubtful, self.words = np.empty((2, doubtful), np.uint32)

    @property
    def arrays(self) -> tuple[Bits, NDArray[np.bool_], Bits, Bits]:
        return self.positions, self.negative, self.doubtful, self.words

    def part(self, found: int, doubts: int) -> Part:
        """What was collected; not whole if there was no room for all of it."""
        whole = found <= self.positions.size and doubts <= self.words.size
        return Part(self.positions, self.negative, found, self.doubtful[:doubts], _read_only(self.words[:doubts]), whole)


def _collect(bits: Bits, threshold: _Threshold, ranges: list[tuple[int, int]]) -> list[Part]:
    """Candidates by the exact threshold: only its ties are doubtful, and may be many."""

    def gather(first: int, last: int) -> Part:
        ties = int(np.count_nonzero((bits[first:last] & np.uint32(MAGNITUDE)) == threshold.magnitude))
        room = _Room(min(threshold.above + ties, last - first), ties)
        bracket = threshold.magnitude, threshold.magnitude + 1
        return room.part(*selection_kernels.collect(bits, first, last, bracket, *room.arrays, 0, 0))

    return spread(gather, ranges)


def _guess(bits: Bits, wanted: int) -> Bracket:
    """A bracket from a sample. A vector that is no larger than a few samples is not worth it: its bracket is empty, a miss."""
    if bits.size < 4 * SAMPLE:
        return Bracket(MAGNITUDE, MAGNITUDE, 0, 0)
    sample = np.sort(bits[:: bits.size // SAMPLE] & np.uint32(MAGNITUDE))
    fraction = wanted / bits.size
    rank = fraction * sample.size
    margin = MARGIN * math.sqrt(rank * (1 - fraction)) + MARGIN
    upper, lower = math.floor(rank - margin), math.ceil(rank + margin)
    most = int(sample[-1 - upper]) + 1 if upper >= 0 else MAGNITUDE
    least = max(LEAST, int(sample[-1 - lower])) if lower < sample.size else LEAST
    found, sure = (int(sample.size - np.searchsorted(sample, bound)) for bound in (least, most))

    def room(count: int) -> int:
        return math.ceil((count + 2 * MARGIN * (math.sqrt(count) + 1)) * bits.size / sample.size)

    return Bracket(least, max(least, most), room(found), room(found - sure))


def _threshold(words: list[Bits], wanted: int) -> _Threshold:
    """Of the `wanted` largest of all these magnitudes."""
    high, above = _cut(spread(_count_high, [(w,) for w in words]), wanted)
    low, between = _cut(spread(_count_low, [(w, high) for w in words]), wanted - above)
    magnitude = high << selection_kernels.LOW_BITS | low
    above += between
    return _Threshold(magnitude, wanted - above, above) if magnitude else _Threshold(LEAST, above, above)


def _count_high(words: Bits) -> Ints:
    histogram = np.zeros(selection_kernels.HIGH_BINS, np.int64)
    selection_kernels.count_high(words, histogram)
    return histogram


def _count_low(words: Bits, high: int) -> Ints:
    histogram = np.zeros(selection_kernels.LOW_BINS, np.int64)
    selection_kernels.count_low(words, high, histogram)
    return histogram


def _cut(histograms: list[Ints], wanted: int) -> tuple[int, int]:
    """The highest bin that has, with the bins above it, at least `wanted` entries; and how many those above have."""
    from_top = np.cumsum(np.sum(histograms, axis=0)[::-1])
    steps = int(np.searchsorted(from_top, wanted))
    return from_top.size - 1 - steps, int(from_top[steps - 1]) if steps else 0


def _quotas(ties: list[int], wanted: int) -> list[int]:
    """How many of each part's ties to keep, the first parts first."""
    quotas = []
    for count in ties:
        quotas.append(min(count, wanted))
        wanted -= quotas[-1]
    return quotas


def _read_only(words: Bits) -> Bits:
    words.flags.writeable = False
    return words
