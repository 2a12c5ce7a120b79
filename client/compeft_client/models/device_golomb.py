"""Golomb-coded blocks on a torch device: what compeft_core.format.golomb does in loops, as operations on whole tensors.

docs/format.md is normative. Both functions take some consecutive blocks at a time, at most CHUNK, so that every number below is
an int32 and temporary memory has a bound. Writing adds each code's bits to the words they fall in. Reading cannot know where a code
begins before the one before it is read; so the step from any one bit, were it the end of a run of zeros, to the next such is computed
for all of them at once, and these steps are doubled until the blocks' first codes have reached their last.

No float is involved. Integers are added in no fixed order, which cannot change a sum. Streams that are read MUST have been checked.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compeft_core.format.golomb import BLOCK

CHUNK = 1024
"""Blocks at a time: 2**26 positions, less than 2**27 bits of streams."""
POWERS = 2 ** np.arange(1, 17)
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Code:
    """How each of some blocks is coded; see docs/format.md, section 3, for the letters. All int64, one entry a block.

    counts: entries kept (n).   listed: entries in the shorter list (n').   inverted: whether those are the ones not kept.
    parameter: m.   low: b, bits that every remainder has.   short: c, remainders that have no more bits than that.
    """

    counts: Ints
    listed: Ints
    inverted: NDArray[np.bool_]
    parameter: Ints
    low: Ints
    short: Ints

    @property
    def least_lengths(self) -> Ints:
        """Bytes that each stream has at least."""
        return (self.counts + self.listed * (1 + self.low) + 7) >> 3


def code_of(counts: Ints, size: int) -> Code:
    """The code of blocks that keep `counts` of `size` positions; all but the last have BLOCK positions."""
    spans = np.minimum(BLOCK, size - np.arange(counts.size) * BLOCK)
    listed = np.minimum(counts, spans - counts)
    denominator = 65536 * np.maximum(listed, 1)
    parameter = np.maximum(1, -((55483 * listed - 45426 * spans) // denominator))
    low = np.searchsorted(POWERS, parameter, side="right")
    return Code(counts, listed, 2 * counts > spans, parameter, low, (2 << low) - parameter)


def write_blocks(places: Tensor, negative: Tensor, code: Code, size: int) -> tuple[Tensor, Tensor]:
    """The streams of some blocks, uint8, one after the other; and how many bytes each has, int32.

    places: int32, increasing, below `size`, where the first of these blocks begins at 0.   negative: bool, one a place.
    """
    counts, listed, parameter, low, short = _columns(
        places.device, code.counts, code.listed, code.parameter, code.low, code.short
    )
    entries = _swap(places, code.inverted, size)
    block = entries >> 16
    previous = torch.maximum(_shifted(entries, -1), (entries & -BLOCK) - 1)
    gaps = entries - previous - 1
    divisors, lows, shorts = (_at(column, block) for column in (parameter, low, short))
    quotients = gaps // divisors
    rests = gaps - quotients * divisors
    longs = (rests >= shorts).int()
    folded = rests + shorts
    tails = 1 | torch.where(longs > 0, folded | (folded & 1) << (lows + 1), rests << 1)
    # `ends`: bits of all codes up to and with this one, as if nothing lay between the codes of two blocks.
    ends = _running(quotients + 1 + lows + longs)
    edges = _at(ends, _running(listed))
    lengths = (counts + edges.diff() + 7) >> 3
    starts = _running(lengths)
    words = torch.zeros(int(starts[-1]) // 8 + 2, dtype=torch.int64, device=places.device)
    _add_bits(words, _at(8 * starts[:-1] + counts - edges[:-1], block) + ends[1:] - lows - longs - 1, tails)
    minus = negative.nonzero().view(-1).int()
    first = _at(8 * starts[:-1] - _running(counts)[:-1], _at(places, minus) >> 16)
    _add_bits(words, first + minus, torch.ones_like(minus))
    return words.view(torch.uint8)[: int(starts[-1])], lengths


def read_blocks(octets: Tensor, starts: Ints, code: Code, size: int) -> tuple[Tensor, Tensor]:
    """Streams, uint8, of which block b's begins at starts[b] -> places and signs, as `write_blocks` takes them."""
    counts, listed, parameter, low, short = _columns(
        octets.device, code.counts, code.listed, code.parameter, code.low, code.short
    )
    (begins,) = _columns(octets.device, 8 * starts)
    bits = (octets.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=octets.device) & 1).view(-1)
    ones, rank = bits.nonzero().view(-1).int(), _running(bits)
    number = torch.arange(len(counts), dtype=torch.int32, device=octets.device)
    owner = _repeat(number, _at(rank, begins).diff(), len(ones))
    after = ones + 1
    tails = _at(_windows(octets), after >> 3) >> (after & 7)
    lows = _at(low, owner)
    stops = after + lows + ((tails & ((1 << lows) - 1)) >= _at(short, owner))
    firsts = begins[:-1] + counts
    terminators = _walk(_at(rank, stops.clamp(max=len(bits))), _at(rank, firsts), listed, int(code.listed.max(initial=0)))
    block = _repeat(number, listed, len(terminators))
    zeros_from = torch.maximum(_shifted(_at(stops, terminators), 0), _at(firsts, block))
    rests = _remainders(_at(tails, terminators), _at(low, block), _at(short, block))
    gaps = (_at(ones, terminators) - zeros_from) * _at(parameter, block) + rests
    ends = _running(gaps + 1)
    entries = ends[1:] - _at(_at(ends, _running(listed)[:-1]), block) + (block << 16) - 1
    places = _swap(entries, code.inverted, size)
    signs = torch.arange(len(places), dtype=torch.int32, device=octets.device)
    signs += _repeat(begins[:-1] - _running(counts)[:-1], counts, len(places))
    return places, _at(bits, signs) > 0


def _walk(following: Tensor, firsts: Tensor, listed: Tensor, most: int) -> Tensor:
    """The first listed[b] nodes of the walk from firsts[b] by `following`, block after block. All int32.

    A step may lead past the last node, from where nobody comes back. Row t of `visited` has each block's node after t steps;
    `following` takes as many steps at once as `visited` has rows.
    """
    following = torch.nn.functional.pad(following, (0, 1), value=len(following))
    visited = firsts.unsqueeze(0)
    while len(visited) < most:
        visited = torch.cat([visited, _at(following, visited)])
        following = _at(following, following) if len(visited) < most else following
    step = torch.arange(len(visited), device=firsts.device)
    return visited.T[step < listed.unsqueeze(1)]


def _remainders(tails: Tensor, low: Tensor, short: Tensor) -> Tensor:
    """What the bits after a code's one say."""
    rests = tails & ((1 << low) - 1)
    return torch.where(rests < short, rests, 2 * rests + (tails >> low & 1) - short)


def _windows(octets: Tensor) -> Tensor:
    """For each byte and the end, it and the next two as one int32: 17 bits from any of its bits on, and a remainder has 16."""
    wide = torch.nn.functional.pad(octets, (0, 3)).int()
    return wide[:-2] | wide[1:-1] << 8 | wide[2:] << 16


def _add_bits(words: Tensor, at: Tensor, values: Tensor) -> None:
    """Add non-negative int32 `values` to the int64 `words` from bit `at` on. No two share a bit, so no addition carries."""
    wide, index, shift = values.long(), at >> 6, at & 63
    words.index_add_(0, index, wide << shift)
    words.index_add_(0, index + 1, wide >> 1 >> (63 - shift))


def _swap(places: Tensor, inverted: NDArray[np.bool_], size: int) -> Tensor:
    """In inverted blocks, the places that are not in `places` instead of those that are."""
    if not inverted.any():
        return places
    mask = torch.zeros(inverted.size * BLOCK, dtype=torch.bool, device=places.device)
    mask[places.long()] = True
    mask.view(-1, BLOCK).logical_xor_(torch.tensor(inverted, device=places.device).unsqueeze(1))
    return mask[:size].nonzero().view(-1).int()


def _columns(device: torch.device, *arrays: Ints) -> tuple[Tensor, ...]:
    """Numbers below 2**31 for each block, on the device as int32, in one transfer."""
    return torch.tensor(np.stack(arrays).astype(np.int32)).to(device).unbind()


def _at(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index.reshape(-1)).view(index.shape)


def _repeat(values: Tensor, times: Tensor, total: int) -> Tensor:
    return torch.repeat_interleave(values, times, output_size=total)


def _running(values: Tensor) -> Tensor:
    """0, then the sum of the first, of the first two, and so on: int32, one more than `values`."""
    sums = values.new_zeros(len(values) + 1, dtype=torch.int32)
    torch.cumsum(values, 0, dtype=torch.int32, out=sums[1:])
    return sums


def _shifted(values: Tensor, first: int) -> Tensor:
    """`first`, then all values but the last; as many as there are."""
    return torch.nn.functional.pad(values, (1, 0), value=first)[: len(values)]
