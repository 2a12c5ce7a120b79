"""Compress a task vector where it lies, and add an update to a state where that lies: torch tensors on any device, in particular CUDA.

Only what is packed crosses the bus. The bytes are those of compeft_core (codec `rice`), and so are the states: every step is exact
integer work or the very float operations of docs/format.md in their order. Nothing here checks bytes: `compeft_core.parse` did.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compeft_client.models.device_golomb import CHUNK, Ints, code_of, read_blocks, write_blocks
from compeft_client.models.device_selection import INTEGERS, all_finite, magnitudes_of, select, span_sums
from compeft_core import Compression, Encoded, InputError, Layout, LayoutMismatchError, NotFiniteError, ScaleRule
from compeft_core.bf16 import INFINITY, NEGATIVE_ZERO
from compeft_core.compress import BY_MAGNITUDES, Group, group_ends_of, scales_of
from compeft_core.format.encoding import IDS, decode, encoding_of, weighted
from compeft_core.format.golomb import BLOCK
from compeft_core.format.header import UpdateHeader, write_header
from compeft_core.layout import Vector
from compeft_core.selection import spans_of

SUMS: dict[ScaleRule, tuple[bool, bool]] = {
    "alpha_sigma": (True, True),
    "bounded_norm": (False, True),
    "mean_magnitude": (False, False),
    "norm": (False, True),
}
"""Whether a scale rule looks at the sum of the values, and at that of their squares."""


def flatten_on_device(layout: Layout, tensors: Mapping[str, Tensor]) -> Tensor:
    """Tensors by name -> one flat tensor in layout order, on their device; of their type, or float32 if they have several.

    Errors: LayoutMismatchError if a name is missing, extra, or has another shape; InputError for a type that does not go to float32
    exactly, or tensors on several devices. Values are not looked at.
    """
    expected = {t.name for t in layout.tensors}
    for name in sorted(expected ^ set(tensors)):
        raise LayoutMismatchError(f"tensor {name!r} is {'missing' if name in expected else 'not in the layout'}")
    for t in layout.tensors:
        if tuple(tensors[t.name].shape) != t.shape:
            raise LayoutMismatchError(f"tensor {t.name!r} has shape {tuple(tensors[t.name].shape)}, the layout says {t.shape}")
        _check_type(f"tensor {t.name!r}", tensors[t.name])
    devices = sorted({str(tensor.device) for tensor in tensors.values()})
    if len(devices) > 1:
        raise InputError(f"tensors lie on {' and '.join(devices[:2])}, they must lie on one device")
    return torch.cat([tensors[t.name].detach().reshape(-1) for t in layout.tensors]) if tensors else torch.empty(0)


@torch.no_grad()
def compress_on_device(layout: Layout, vector: Tensor, settings: Compression) -> bytes:
    """`compeft_core.encode(compress(layout, vector, settings))`, computed on the vector's device.

    vector: float32, bfloat16 or float16, length `layout.size`, in layout order.   Errors: those of `compeft_core.compress`.
    """
    if tuple(vector.shape) != (layout.size,):
        raise LayoutMismatchError(f"vector has shape {tuple(vector.shape)}, the layout says ({layout.size},)")
    _check_type("vector", vector)
    vector = vector.detach().contiguous()
    ends = group_ends_of(layout, settings.granularity)
    kept = _keep(vector[: layout.ternary_size], ends, settings)
    header = write_header(UpdateHeader(IDS["rice"], layout.ternary_size, layout.dense_size, ends, kept.scales))
    head = torch.frombuffer(bytearray(header), dtype=torch.uint8).to(vector.device)
    octets = torch.cat([head, *_body(kept, layout.ternary_size), _dense_octets(vector[layout.ternary_size :])])
    return octets.cpu().numpy().tobytes()


@torch.no_grad()
def apply_on_device(encoded: Encoded, state: Tensor, weight: float = 1.0) -> None:
    """`compeft_core.add_to`, computed on the state's device: `state += weight * update`, in place, in float32.

    Errors, before anything is written: LayoutMismatchError on another length; InputError on another type or a strided state;
    NotFiniteError if the weight, or it times a value, is not a finite float32.
    """
    e = encoding_of(decode(encoded)) if encoded.codec == "rice4" else encoded  # the device reads Golomb codes only
    if tuple(state.shape) != (e.size,):
        raise LayoutMismatchError(f"state has shape {tuple(state.shape)}, the update says ({e.size},)")
    if state.dtype != torch.float32 or not state.is_contiguous():
        raise InputError(f"state is {state.dtype} or not contiguous, it must be float32 and contiguous")
    values, ends = (torch.tensor(a).to(state.device) for a in (weighted(e.scales, weight), e.group_ends))
    start = int(e.block_starts[0])
    octets = torch.tensor(e.octets[start:]).to(state.device)
    dense = _dense_terms(octets[int(e.block_starts[-1]) - start :], weight)
    for first in range(0, e.blocks, CHUNK):
        counts, starts = e.block_counts[first : first + CHUNK], e.block_starts[first : first + CHUNK + 1]
        begin, stop = first * BLOCK, min(e.ternary_size, (first + CHUNK) * BLOCK)
        streams = octets[int(starts[0]) - start : int(starts[-1]) - start]
        places, negative = read_blocks(streams, starts - starts[0], code_of(counts, stop - begin), stop - begin)
        groups = torch.searchsorted(places, (ends - begin).clamp(0, stop - begin).int())
        terms = torch.repeat_interleave(values, groups.diff(prepend=groups.new_zeros(1)), output_size=len(places))
        # Not index_add_: an atomic addition on CUDA flushes subnormal numbers. No place occurs twice.
        state[begin:stop][places.long()] += torch.where(negative, -terms, terms)
    state[e.ternary_size :] += dense


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """positions: int64, increasing.   negative: bool, one a position.   scales: float32, one a group, as in `Ternary`."""

    positions: Tensor
    negative: Tensor
    scales: Vector


def _keep(front: Tensor, ends: Ints, settings: Compression) -> _Kept:
    """What is kept of the ternary part, and the scale of each group that ends at `ends`."""
    magnitudes = magnitudes_of(front)
    if not all_finite(magnitudes, front.dtype):
        raise NotFiniteError("the task vector holds NaN or infinity")
    wanted = min(len(front), max(1, floor(settings.density * len(front) + 0.5)))
    positions = select(magnitudes, wanted) if len(front) else torch.empty(0, dtype=torch.int64, device=front.device)
    values = front[positions]
    bounds = torch.searchsorted(positions, torch.tensor(ends).to(front.device)).cpu().numpy()
    counts = np.diff(bounds, prepend=0)
    scales = scales_of(_groups(front, ends, values.abs(), bounds, settings.scale), settings)
    negative = values.view(INTEGERS[values.dtype]) < 0
    if (scales[counts > 0] == 0).any():
        full = torch.tensor(np.repeat(scales > 0, counts)).to(front.device)
        return _Kept(positions[full], negative[full], scales)
    return _Kept(positions, negative, scales)


def _groups(front: Tensor, ends: Ints, kept: Tensor, bounds: Ints, rule: ScaleRule) -> list[Group]:
    """What the scale rule looks at; sums that it does not look at are 0. `kept` has the kept magnitudes, cut at `bounds`."""
    plain, squares = SUMS[rule]
    columns = (
        np.diff(ends, prepend=0),
        _sums(front, ends, squared=False) if plain else np.zeros(ends.size),
        _sums(front, ends, squared=True) if squares else np.zeros(ends.size),
        np.diff(bounds, prepend=0),
        _sums(kept, bounds, squared=False) if rule in BY_MAGNITUDES else np.zeros(ends.size),
    )
    return [Group(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _sums(values: Tensor, ends: Ints, *, squared: bool) -> NDArray[np.float64]:
    """The sum of each group of `values`, groups given by their ends; 0 for an empty one."""
    full = np.diff(ends, prepend=0) > 0
    totals = np.zeros(ends.size, np.float64)
    if full.any():
        spans = spans_of(ends[full])
        totals[full] = spans.total(span_sums(values, spans, squared=squared), int(full.sum()))
    return totals


def _body(kept: _Kept, size: int) -> list[Tensor]:
    """Index and streams, uint8."""
    blocks = -(-size // BLOCK)
    edges = torch.tensor(np.minimum(np.arange(blocks + 1) * BLOCK, size)).to(kept.positions.device)
    bounds = torch.searchsorted(kept.positions, edges).cpu().numpy()
    counts, streams, extras = np.diff(bounds), list[Tensor](), list[Tensor]()
    for first in range(0, blocks, CHUNK):
        begin, stop = first * BLOCK, min(size, (first + CHUNK) * BLOCK)
        entries = slice(int(bounds[first]), int(bounds[min(blocks, first + CHUNK)]))
        places = (kept.positions[entries] - begin).int()
        code = code_of(counts[first : first + CHUNK], stop - begin)
        stream, lengths = write_blocks(places, kept.negative[entries], code, stop - begin)
        streams.append(stream)
        extras.append(lengths - torch.tensor(code.least_lengths).to(stream.device))
    index = torch.stack([edges.new_tensor(counts), torch.cat(extras)], 1) if extras else edges.new_empty(0)
    return [_varints(index.view(-1)), *streams]


def _varints(values: Tensor) -> Tensor:
    """int64 values below 2**21 as LEB128, one after the other, uint8."""
    parts = values.unsqueeze(1) >> torch.tensor([0, 7, 14, 21], device=values.device)
    octets = (parts[:, :3] & 0x7F) | (parts[:, 1:] > 0).long() << 7
    used = parts[:, :3] > 0
    used[:, 0] = True
    return octets[used].to(torch.uint8)


def _dense_octets(back: Tensor) -> Tensor:
    """The dense part as bfloat16, uint8: what `compeft_core.bf16.pack` does."""
    bits = back.float().view(torch.int32).long() & 0xFFFFFFFF
    half = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    if not all_finite(magnitudes_of(back), back.dtype) or bool(((half & INFINITY) == INFINITY).any()):
        raise NotFiniteError("a dense parameter is NaN, infinite or too large for bfloat16")
    half = torch.where(half == NEGATIVE_ZERO, 0, half)
    return torch.stack([half & 0xFF, half >> 8], 1).to(torch.uint8).view(-1)


def _dense_terms(octets: Tensor, weight: float) -> Tensor:
    """float32(weight * value) of each bfloat16 value. Errors: NotFiniteError, as `compeft_core.format.encoding.weighted`."""
    terms = (weight * octets.clone().view(torch.bfloat16).double()).float()
    if not bool(terms.isfinite().all()):
        raise NotFiniteError(f"weight {weight} times the update is not a finite float32")
    return terms


def _check_type(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in INTEGERS:
        raise InputError(f"{name} is {tensor.dtype}, it must be float32, bfloat16 or float16")
