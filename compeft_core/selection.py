"""The largest magnitudes of a float32 vector, exactly, without sorting it.

1. `survey` sorts a sample of 65,536 values and takes from it a narrow bracket that the threshold lies in with near certainty: the sample's
   value at the wanted rank, four standard deviations up and down. One pass over the vector then sums it (for the scale) and collects the
   candidates: every value above the bracket, which is surely kept, and every value in it, which is doubtful.
2. `select` finds the exact threshold among the doubtful magnitudes by two histograms: of their upper 16 bits, then, in the bin where the
   wanted rank falls, of their lower 15 bits. That gives the threshold to the last bit, and how many entries tie with it.
3. `settle` drops the doubtful candidates below the threshold, and the last of those that tie.

Example: of 20 million values 1 million are wanted. The sample's rank is 3,277 +- 223, so about 930,000 candidates are sure and 140,000
doubtful; the histograms see 140,000 values instead of 20 million.

Invariant: the result does not depend on the sample. If the bracket misses the threshold, `survey` returns no candidates, and `select`
takes the histograms of the whole vector and collects by the exact threshold: slower, the same entries.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_core.kernels import selection_kernels
from compeft_core.kernels.selection_kernels import Room, SpanSums
from compeft_core.parallel import MAGNITUDE, shares, spread

SAMPLE = 1 << 16
MARGIN = 4
"""Half the width of the bracket, in standard deviations of the sample's rank."""
LEAST = 1
"""Bits of the least magnitude that is not zero."""
Ints = NDArray[np.int64]
Bits = NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Groups cut into pieces of at most SPAN values: piece s is starts[s]..stops[s]-1 and belongs to group[s]."""

    starts: Ints
    stops: Ints
    group: Ints

    def total(self, sums: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
        """Sum of the pieces of each group, one after the other (`np.add.at` keeps the order)."""
        totals = np.zeros(groups, np.float64)
        np.add.at(totals, self.group, sums)
        return totals


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """One worker's candidates: the first `found` of room.positions and room.negative.

    room.doubtful and room.words have exactly the doubtful ones. is_whole: whether there was room for all candidates.
    """

    room: Room
    found: int
    is_whole: bool

    @property
    def sure(self) -> int:
        """Number of candidates that are kept whatever the threshold is."""
        return self.found - self.room.words.size


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """The sums of each span, of values and of squares, and the candidates of each worker; no parts if the bracket missed."""

    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    parts: list[Candidates]


@dataclass(frozen=True, slots=True)
class Bracket:
    """Magnitude bits least..most-1 in which the threshold probably lies, and room for the candidates and the doubtful ones."""

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
    span_sums = SpanSums(spans.starts, spans.stops, sums, squares)

    def look(first: int, last: int) -> Candidates:
        size = int(spans.stops[last - 1] - spans.starts[first])
        room = _room(min(bracket.candidates, size), min(bracket.doubtful, size))
        return _candidates(room, *selection_kernels.survey(bits, span_sums, (bracket.least, bracket.most), room, first, last))

    parts = spread(look, shares(spans.group.size, workers))
    sure, found = sum(p.sure for p in parts), sum(p.found for p in parts)
    hit = sure < wanted <= found or (bracket.least == LEAST and found <= wanted)
    return Survey(sums, squares, parts if hit and all(p.is_whole for p in parts) else [])


def select(bits: Bits, parts: list[Candidates], wanted: int, workers: int) -> tuple[Bits, NDArray[np.bool_]]:
    """Positions, increasing, and signs of the `wanted` largest magnitudes; of those that tie for the last places, the first ones.

    An exact zero is never kept, so the result is shorter than `wanted` if too few values are not zero. `parts` are those of `survey`.
    """
    if parts and sum(p.found for p in parts) <= wanted:
        threshold = _Threshold(LEAST, wanted, 0)
    elif parts:
        threshold = _threshold([p.room.words for p in parts], wanted - sum(p.sure for p in parts))
    else:
        ranges = shares(bits.size, workers)
        threshold = _threshold([bits[first:last] for first, last in ranges], wanted)
        parts = _collect(bits, threshold, ranges)
    quotas = _quotas([int((p.room.words == threshold.magnitude).sum()) for p in parts], threshold.ties)

    def settle(part: Candidates, quota: int) -> int:
        return selection_kernels.settle(part.room, part.found, threshold.magnitude, quota)

    sizes = spread(settle, list(zip(parts, quotas, strict=True)))
    positions = [p.room.positions[:size] for p, size in zip(parts, sizes, strict=True)]
    negative = [p.room.negative[:size] for p, size in zip(parts, sizes, strict=True)]
    return (positions[0], negative[0]) if len(parts) == 1 else (np.concatenate(positions), np.concatenate(negative))


@dataclass(frozen=True, slots=True)
class _Threshold:
    """Bits of the least magnitude kept, never 0; how many of those that equal it are kept, and how many are greater."""

    magnitude: int
    ties: int
    above: int


def _room(candidates: int, doubtful: int) -> Room:
    """Memory for this many candidates. Pages that are not touched cost nothing, so each worker has room for all of the vector's."""
    words = np.empty((2, doubtful), np.uint32)
    return Room(np.empty(candidates, np.uint32), np.empty(candidates, np.bool_), words[0], words[1])


def _candidates(room: Room, found: int, doubts: int) -> Candidates:
    """The candidates that a kernel collected into `room`."""
    whole = found <= room.positions.size and doubts <= room.words.size
    doubtful = room._replace(doubtful=room.doubtful[:doubts], words=_read_only(room.words[:doubts]))
    return Candidates(doubtful, found, whole)


def _collect(bits: Bits, threshold: _Threshold, ranges: list[tuple[int, int]]) -> list[Candidates]:
    """Candidates by the exact threshold: only its ties are doubtful, and may be many."""

    def gather(first: int, last: int) -> Candidates:
        ties = int(np.count_nonzero((bits[first:last] & np.uint32(MAGNITUDE)) == threshold.magnitude))
        room = _room(min(threshold.above + ties, last - first), ties)
        bracket = threshold.magnitude, threshold.magnitude + 1
        return _candidates(room, *selection_kernels.collect(bits, (first, last), bracket, room, (0, 0)))

    return spread(gather, ranges)


def _guess(bits: Bits, wanted: int) -> Bracket:
    """A bracket from a sample. For a vector of fewer than four samples the bracket is empty, because the direct way is as fast."""
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
