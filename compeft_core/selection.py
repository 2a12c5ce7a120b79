"""The largest magnitudes of a float32 vector, exactly, without sorting it.

A sample guesses a narrow bracket around the threshold. One pass sums the vector, counts what lies above the bracket and collects
what lies within; two histograms of the collected bits, upper 16 then lower 15, give the threshold to the last bit and how many
entries tie with it. A guess that misses costs time, never a different result: the histograms are then taken of the whole vector.
"""

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from compeft_core import kernels
from compeft_core.machine import MAGNITUDE, shares, spread

SAMPLE = 1 << 16
MARGIN = 4
"""Half width of the bracket in standard deviations of the sample's rank."""
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
    """One worker's positions start..stop: how many magnitudes are surely above the threshold, and all the other candidates."""

    start: int
    stop: int
    above: int
    words: Bits


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """The sums of each span, of values and of squares, and the parts that the selection goes on with."""

    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    parts: list[Part]


def spans_of(ends: Ints) -> Spans:
    """The spans of non-empty groups that end at `ends`."""
    begins = np.concatenate([np.zeros(1, np.int64), ends])[: ends.size]
    pieces = -(-(ends - begins) // kernels.SPAN)
    group = np.repeat(np.arange(ends.size), pieces)
    within = np.arange(group.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts = begins[group] + within * kernels.SPAN
    return Spans(starts, np.minimum(starts + kernels.SPAN, ends[group]), group)


def survey(bits: Bits, spans: Spans, wanted: int, workers: int) -> Survey:
    """Sum the spans of a vector and gather the candidates for its `wanted` largest magnitudes, in one pass."""
    bracket, room = _bracket(bits, wanted)
    sums, squares = np.zeros((2, spans.group.size), np.float64)

    def look(first: int, last: int) -> tuple[Part, int]:
        start, stop = int(spans.starts[first]), int(spans.stops[last - 1])
        words = np.empty(math.ceil(room * (stop - start)), np.uint32)
        above, within = kernels.survey(bits, spans.starts, spans.stops, sums, squares, bracket, words, first, last)
        return Part(start, stop, above, _read_only(words[:within])), within - words.size

    looks = spread(look, shares(spans.group.size, workers))
    parts = [part for part, _ in looks]
    above, found = sum(p.above for p in parts), sum(p.above + p.words.size for p in parts)
    if any(excess > 0 for _, excess in looks) or not above < wanted <= found:
        parts = [Part(p.start, p.stop, 0, bits[p.start : p.stop]) for p in parts]
    return Survey(sums, squares, parts)


def select(bits: Bits, parts: list[Part], wanted: int) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Positions, increasing, and signs of the `wanted` largest magnitudes; of those that tie for the last places, the first ones.

    Never an exact zero, so fewer than `wanted` if there are fewer others.
    """
    wanted -= sum(p.above for p in parts)
    highs = spread(_count_high, [(p,) for p in parts])
    high, above = _threshold(highs, wanted)
    lows = spread(_count_low, [(p, high) for p in parts])
    low, between = _threshold(lows, wanted - above)
    magnitude = high << kernels.LOW_BITS | low
    ties = [int(counts[low]) for counts in lows]
    greater = [p.above + int(a[high + 1 :].sum() + b[low + 1 :].sum()) for p, a, b in zip(parts, highs, lows, strict=True)]
    quotas = _quotas(ties, wanted - above - between if magnitude else 0)
    ends = list(accumulate((g + q for g, q in zip(greater, quotas, strict=True)), initial=0))
    positions, negative = np.empty(ends[-1], np.uint32), np.empty(ends[-1], np.bool_)

    def emit(part: Part, tied: int, quota: int, at: int) -> None:
        last_tie = part.stop if quota == tied else kernels.find_tie(bits, part.start, part.stop, magnitude, quota)
        at = kernels.emit(bits, part.start, last_tie, magnitude, positions, negative, at)
        kernels.emit(bits, last_tie, part.stop, magnitude + 1, positions, negative, at)

    spread(emit, list(zip(parts, ties, quotas, ends, strict=False)))
    return positions, negative


def _bracket(bits: Bits, wanted: int) -> tuple[tuple[int, int], float]:
    """Magnitudes (least, most) that the threshold probably lies between, and a bound on the fraction of values that do.

    A vector that is no larger than a few samples is not worth guessing for: its bracket is empty, which is a miss.
    """
    if bits.size < 4 * SAMPLE:
        return (MAGNITUDE, MAGNITUDE), 0.0
    sample = np.sort(bits[:: bits.size // SAMPLE] & np.uint32(MAGNITUDE))[::-1]
    fraction = wanted / bits.size
    rank = fraction * sample.size
    margin = MARGIN * math.sqrt(rank * (1 - fraction)) + MARGIN
    upper, lower = math.floor(rank - margin), math.ceil(rank + margin)
    most = int(sample[upper]) if upper >= 0 else MAGNITUDE
    least = int(sample[lower]) if lower < sample.size else 1
    return (least, max(least, most)), 4 * margin / sample.size


def _count_high(part: Part) -> Ints:
    histogram = np.zeros(kernels.HIGH_BINS, np.int64)
    kernels.count_high(part.words, histogram)
    return histogram


def _count_low(part: Part, high: int) -> Ints:
    histogram = np.zeros(kernels.LOW_BINS, np.int64)
    kernels.count_low(part.words, high, histogram)
    return histogram


def _threshold(histograms: list[Ints], wanted: int) -> tuple[int, int]:
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
