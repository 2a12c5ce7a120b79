"""The largest magnitudes of a tensor, exactly and without sorting it, and sums in the fixed order of docs/format.md, on any device.

The steps are those of compeft_core.selection: a sample guesses a bracket around the threshold, histograms of what lies within give it
to the last bit. Magnitudes are compared as the bits of the tensor's own type, 15 or 31 of them: going to float32 keeps their order and
which are equal. A guess that misses costs time, never a different result.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compeft_core.kernels.selection_kernels import LANES
from compeft_core.selection import MARGIN, SAMPLE, Spans

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
"""Types that go to float32 exactly, and integers of their width."""
DIGIT = 16
"""Bits of a magnitude that one histogram counts."""


def magnitudes_of(values: Tensor) -> Tensor:
    """The bits of a contiguous tensor's values without their signs: order of bits is order of magnitudes."""
    integer = INTEGERS[values.dtype]
    return values.view(integer) & torch.iinfo(integer).max


def all_finite(magnitudes: Tensor, dtype: torch.dtype) -> bool:
    """Whether none of these, from `magnitudes_of` a tensor of `dtype`, is infinite or NaN."""
    infinity = torch.tensor(math.inf, dtype=dtype).view(INTEGERS[dtype])
    return len(magnitudes) == 0 or int(magnitudes.max()) < int(infinity)


def select(magnitudes: Tensor, wanted: int) -> Tensor:
    """Positions, int64, increasing, of the `wanted` largest; of those that tie for the last places, the first ones.

    Never a zero, so fewer than `wanted` if there are fewer others.
    """
    least, most = _bracket(magnitudes, wanted)
    candidates, found = _at_least(magnitudes, least)
    if not int((found > most).sum()) < wanted <= len(found):
        least, most = 1, torch.iinfo(magnitudes.dtype).max
        candidates, found = _at_least(magnitudes, least)
    if len(found) <= wanted:
        return candidates
    near = found[found <= most]
    offset, above = _threshold(near - least, most - least, wanted - len(found) + len(near))
    kept, tied = found > least + offset, (found == least + offset).nonzero().view(-1)
    kept[tied[: wanted - len(found) + len(near) - above]] = True
    return candidates[kept]


def span_sums(values: Tensor, spans: Spans, *, squared: bool) -> NDArray[np.float64]:
    """Of each span, the float64 sum of the values, or of their squares, by lanes and a tree as docs/format.md says.

    Rows of LANES values are taken together over all spans, the first of each, then the second, and so on, so a lane's values are added
    in their order. What is left of a span comes after its rows, filled up with +0.0, which changes no lane as none is ever -0.0.
    """
    lengths = spans.stops - spans.starts
    order = np.argsort(-lengths, kind="stable")
    starts, rows, rest = spans.starts[order], lengths[order] // LANES, lengths[order] % LANES
    lanes = torch.zeros(len(order), LANES, dtype=torch.float64, device=values.device)
    if rows.any():
        active = [int(n) for n in np.searchsorted(-rows, -np.arange(rows[0]))]
        firsts = np.concatenate([starts[:n] + LANES * row for row, n in enumerate(active)])
        # Not index_select: of a view with more than 2**31 entries, overlapping ones counted, it divides by 64-bit numbers.
        table = values.unfold(0, LANES, 1)[torch.tensor(firsts).to(values.device)]
        for n, row in zip(active, torch.split(table, active), strict=True):
            _add(lanes[:n], row, squared)
    _add(lanes, _last_rows(values, starts + LANES * rows, rest), squared)
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    sums = np.empty(len(order), np.float64)
    sums[order] = lanes[:, 0].cpu().numpy()
    return sums


def _bracket(magnitudes: Tensor, wanted: int) -> tuple[int, int]:
    """Magnitudes (least, most), both within, that the threshold probably lies between; everything for a small tensor."""
    top, size = torch.iinfo(magnitudes.dtype).max, len(magnitudes)
    if size < 4 * SAMPLE:
        return 1, top
    sample = magnitudes[:: size // SAMPLE].sort(descending=True).values
    fraction = wanted / size
    rank = fraction * len(sample)
    margin = MARGIN * math.sqrt(rank * (1 - fraction)) + MARGIN
    upper, lower = math.floor(rank - margin), math.ceil(rank + margin)
    most = int(sample[upper]) if upper >= 0 else top
    least = int(sample[lower]) if lower < len(sample) else 1
    return max(1, least), max(1, most)


def _at_least(magnitudes: Tensor, least: int) -> tuple[Tensor, Tensor]:
    positions = (magnitudes >= least).nonzero().view(-1)
    return positions, magnitudes[positions]


def _threshold(words: Tensor, highest: int, wanted: int) -> tuple[int, int]:
    """The `wanted`-th largest of words in 0..highest, and how many are larger: a histogram of the upper bits, then of the lower."""
    shift, threshold, above = max(0, highest.bit_length() - DIGIT), 0, 0
    while True:
        digits = words >> shift
        from_top = torch.bincount(digits).flip(0).cumsum(0)
        steps = int(torch.searchsorted(from_top, wanted - above))
        digit = len(from_top) - 1 - steps
        threshold += digit << shift
        above += int(from_top[steps - 1]) if steps else 0
        if shift == 0:
            return threshold, above
        words = words[digits == digit] & ((1 << shift) - 1)
        shift = max(0, shift - DIGIT)


def _add(lanes: Tensor, row: Tensor, squared: bool) -> None:
    """One float64 addition a lane. A square is exact in float64, so it does not matter whether it is fused with the addition."""
    if squared:
        lanes.addcmul_(row, row)
    else:
        lanes.add_(row)


def _last_rows(values: Tensor, starts: NDArray[np.int64], rest: NDArray[np.int64]) -> Tensor:
    """The rest[s] < LANES values from starts[s] on, then zeros: one row a span."""
    at, left = torch.tensor(np.stack([starts, rest])).to(values.device)
    lane = torch.arange(LANES, device=values.device)
    index = (at.unsqueeze(1) + lane).clamp(max=len(values) - 1)
    return torch.where(lane < left.unsqueeze(1), values[index], torch.zeros((), dtype=values.dtype, device=values.device))
