"""A second decoder, in plain Python, written from docs/format.md alone: slow, and independent of the kernels."""

import math
import struct
from dataclasses import dataclass

from tests.core.format import reference_context
from tests.core.format.reference_bytes import Bytes, Malformed, need

BLOCK = 65536
__all__ = ["Decoded", "Malformed", "decode"]


@dataclass
class Decoded:
    codec: str
    shapes: list[tuple[int, int]]
    """Of the matrices, if the codec is context."""
    ternary_size: int
    entries: dict[int, float]
    """Position -> +scale or -scale."""
    dense: list[float]
    scales: list[float]
    group_ends: list[int]


class Bits:
    """Lowest bit of the first byte first."""

    def __init__(self, stream: bytes) -> None:
        self.bits = [octet >> i & 1 for octet in stream for i in range(8)]
        self.at = 0

    def take(self, count: int) -> int:
        need(self.at + count <= len(self.bits), "stream too short")
        self.at += count
        return sum(bit << i for i, bit in enumerate(self.bits[self.at - count : self.at]))

    def zeros(self) -> int:
        """Zeros before the next one, which is taken too."""
        start = self.at
        while self.take(1) == 0:
            pass
        return self.at - start - 1

    def rest(self) -> list[int]:
        return self.bits[self.at :]


def decode(blob: bytes) -> Decoded:
    data = Bytes(blob)
    need(data.take(5) == b"CPFT\x01", "head")
    codec = data.take(1)[0]
    need(codec in BODIES, "codec")
    ternary_size, dense_size, groups = data.varint(), data.varint(), data.varint()
    need(ternary_size + dense_size < 2**32, "size")
    need((groups == 0) == (ternary_size == 0) and groups <= 262144, "groups")
    sizes = [data.varint() for _ in range(groups)] if groups > 1 else [ternary_size] * groups
    need(all(sizes) and sum(sizes) == ternary_size, "group sizes")
    raw_scales = data.take(4 * groups)
    scales = list(struct.unpack(f"<{groups}f", raw_scales))
    before = len(data.rest)
    name, decode_body = BODIES[codec]
    signs, shapes = decode_body(data, ternary_size)
    body = before - len(data.rest)
    dense = decode_dense(data.take(2 * dense_size))
    need(not data.rest, "bytes follow")
    need(codec != 2 or body < rice_length(signs, ternary_size), "not shorter than rice")
    ends = [sum(sizes[: i + 1]) for i in range(groups)]
    check_scales(scales, raw_scales, ends, sorted(signs))
    entries = {p: -s if signs[p] else s for p in sorted(signs) for s in [scales[group_of(p, ends)]]}
    return Decoded(name, shapes, ternary_size, entries, dense, scales, ends)


def decode_rice(data: Bytes, ternary_size: int) -> tuple[dict[int, bool], list[tuple[int, int]]]:
    """Position -> whether it is negative; no shapes."""
    spans = spans_of(ternary_size)
    index = [(data.varint(), data.varint()) for _ in spans]
    signs: dict[int, bool] = {}
    for block, (span, (kept, extra)) in enumerate(zip(spans, index, strict=True)):
        need(kept <= span, "more kept than there are")
        for place, negative in decode_stream(data, kept, extra, span):
            signs[block * BLOCK + place] = negative
    return signs, []


def decode_rice4(data: Bytes, ternary_size: int) -> tuple[dict[int, bool], list[tuple[int, int]]]:
    """As `decode_rice`, from streams of four lanes."""
    spans = spans_of(ternary_size)
    index = [[data.varint() for _ in range(5)] for _ in spans]
    signs: dict[int, bool] = {}
    for block, (span, (kept, *extras)) in enumerate(zip(spans, index, strict=True)):
        need(kept <= span, "more kept than there are")
        for place, negative in decode_lanes(data, kept, extras, span):
            signs[block * BLOCK + place] = negative
    return signs, []


def decode_lanes(data: Bytes, kept: int, extras: list[int], span: int) -> list[tuple[int, bool]]:
    listed = min(kept, span - kept)
    k = (31537 * (2 * span - listed) // (131072 * listed)).bit_length() if listed else 0
    signs = Bits(data.take((kept + 7) // 8))
    negative = [bool(signs.take(1)) for _ in range(kept)]
    need(not any(signs.rest()), "padding of the signs")
    gaps = [0] * listed
    for lane, extra in enumerate(extras):
        numbers = range(lane, listed, 4)
        bits = Bits(data.take((len(numbers) * (1 + k) + 7) // 8 + extra))
        for i in numbers:
            zeros = bits.zeros()
            gaps[i] = zeros * 2**k + bits.take(k)
        need(len(bits.rest()) < 8 and not any(bits.rest()), "padding of a lane")
    places = [sum(gaps[: i + 1]) + i for i in range(listed)]
    need(not places or places[-1] < span, "place beyond the block")
    if 2 * kept > span:
        places = sorted(set(range(span)) - set(places))
    return list(zip(places, negative, strict=True))


def spans_of(ternary_size: int) -> list[int]:
    return [min(BLOCK, ternary_size - base) for base in range(0, ternary_size, BLOCK)]


def golomb(listed: int, span: int) -> tuple[int, int]:
    """m and b."""
    m = max(1, math.ceil((45426 * span - 55483 * listed) / (65536 * listed)))
    return m, m.bit_length() - 1


def rice_length(signs: dict[int, bool], ternary_size: int) -> int:
    """Bytes of the body by rice."""
    total = 0
    for block, span in enumerate(spans_of(ternary_size)):
        places = [p - block * BLOCK for p in sorted(signs) if block * BLOCK <= p < block * BLOCK + span]
        kept = least = bits = len(places)
        if 2 * kept > span:
            places = sorted(set(range(span)) - set(places))
        for before, place in zip([-1, *places], places, strict=False):
            m, b = golomb(len(places), span)
            q, r = divmod(place - before - 1, m)
            bits += q + 1 + b + (r >= 2 ** (b + 1) - m)
            least += 1 + b
        extra = (bits + 7) // 8 - (least + 7) // 8
        total += varint_length(kept) + varint_length(extra) + (bits + 7) // 8
    return total


def varint_length(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)


def decode_stream(data: Bytes, kept: int, extra: int, span: int) -> list[tuple[int, bool]]:
    listed = min(kept, span - kept)
    least = kept
    if listed:
        m, b = golomb(listed, span)
        least += listed * (1 + b)
    stream = Bits(data.take((least + 7) // 8 + extra))
    negative = [bool(stream.take(1)) for _ in range(kept)]
    places, place = [], -1
    for _ in range(listed):
        c = 2 ** (b + 1) - m
        q = stream.zeros()
        r = stream.take(b)
        if r >= c:
            r = 2 * r + stream.take(1) - c
        place += 1 + q * m + r
        need(place < span, "place beyond the block")
        places.append(place)
    need(len(stream.rest()) < 8 and not any(stream.rest()), "padding")
    if 2 * kept > span:
        places = sorted(set(range(span)) - set(places))
    return list(zip(places, negative, strict=True))


def decode_dense(raw: bytes) -> list[float]:
    halves = struct.unpack(f"<{len(raw) // 2}H", raw)
    values = [struct.unpack("<f", struct.pack("<I", half << 16))[0] for half in halves]
    need(all(map(math.isfinite, values)) and 0x8000 not in halves, "dense value")
    return values


def check_scales(scales: list[float], raw: bytes, ends: list[int], positions: list[int]) -> None:
    full = {group_of(p, ends) for p in positions}
    for i, scale in enumerate(scales):
        if i in full:
            need(math.isfinite(scale) and scale >= 2.0**-126, "scale of a group that keeps entries")
        else:
            need(raw[4 * i : 4 * i + 4] == bytes(4), "scale of an empty group")


def group_of(position: int, ends: list[int]) -> int:
    return next(i for i, end in enumerate(ends) if position < end)


BODIES = {1: ("rice", decode_rice), 2: ("context", reference_context.decode), 3: ("rice4", decode_rice4)}
