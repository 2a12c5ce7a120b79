"""A second decoder of product-space encodings, in plain Python, written from docs/product-format.md alone: slow, and independent."""

import struct
from dataclasses import dataclass, field

from tests.core.format.reference_bytes import Bytes, Malformed, need

__all__ = ["Component", "Malformed", "decode", "factors"]
MANTISSAS = [128, 134, 140, 146, 152, 159, 166, 173, 181, 189, 197, 206, 215, 225, 235, 245]
EVEN, ODD = [0, 5, 1, 6, 2, 4, 3, 7], [2, 7, 3, 4, 0, 6, 1, 5]
HALF = 1 << 15


def _squash_table() -> list[int]:
    e, table = 2**32, []
    for _ in range(3072):
        table.append(2**48 // (2**32 + e))
        e = (e * 4278222805) >> 32
    return table


TABLE = _squash_table()


def squash(z: int) -> int:
    i = min(max(z >> 8, -3071), 3071)
    return TABLE[i] if i >= 0 else 65536 - TABLE[-i]


@dataclass
class Context:
    logit: int = 0
    age: int = 0

    def learn(self, error: int) -> None:
        rate = max(524288 // (32 + self.age), 256)
        self.logit = min(max(self.logit + ((error * rate) >> 16), -(2**20)), 2**20)
        self.age = min(self.age + 1, 1023)


@dataclass
class Component:
    scale: int
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)


class Stream:
    """The arithmetic coder and the contexts of one segment."""

    def __init__(self, octets: bytes) -> None:
        self.octets, self.low, self.high, self.at = octets, 0, 2**32 - 1, 0
        self.word = int.from_bytes((octets[:4] + bytes(4))[:4], "big")
        self.zero_mean = [[Context(8192 * (2 * b - 21)) for b in range(32)]]
        self.zero_mean.append([Context(8192 * (2 * b - 23) if b > 12 else max(24576 * (2 * b - 25), -229376)) for b in range(32)])
        self.zero_near = [[Context() for _ in range(32)] for _ in range(2)]
        self.more_mean = [
            [Context(min(max(49152 * (b - 14 - min(s, 2)), -163840), 262144)) for b in range(32)] for s in range(14)
        ]
        self.more_near = [[Context() for _ in range(32)] for _ in range(3)]
        self.rank_near = [[Context() for _ in range(3)] for _ in range(8)]
        self.rank_before = [[Context() for _ in range(3)] for _ in range(8)]
        self.scales = [[Context() for _ in range(36)] for _ in range(2)]

    def bit(self, *contexts: Context) -> int:
        p = squash(sum(c.logit for c in contexts)) if contexts else HALF
        middle = self.low + (((self.high - self.low) * p) >> 16)
        y = int(self.word <= middle)
        if y:
            self.high = middle
        else:
            self.low = middle + 1
        while (self.low ^ self.high) >> 24 == 0:
            following = self.octets[self.at + 4] if self.at + 4 < len(self.octets) else 0
            self.word = (self.word << 8) % 2**32 | following
            self.low, self.high = (self.low << 8) % 2**32, (self.high << 8) % 2**32 + 255
            self.at += 1
        need(self.at <= len(self.octets), "stream ends early")
        for c in contexts:
            c.learn(65536 * y - p)
        return y

    def number(self, digits: int, got: int = 1) -> int:
        for _ in range(digits):
            got = got << 1 | self.bit()
        return got

    def end(self) -> None:
        octets = self.octets[: self.at] + (bytes([(self.low >> 24) + 1]) if self.low else b"")
        need(len(octets) == len(self.octets) and octets[-1:] == self.octets[-1:], "end of stream")


def decode(blob: bytes, shapes: list[tuple[int, int]]) -> list[list[Component]]:
    """The components of each module."""
    data = Bytes(blob)
    need(data.take(6) == b"CPFT\x01\x03", "head")
    need(data.varint() == len(shapes), "number of modules")
    segments, size = [[]] if shapes else [], 0
    for i, (m, n) in enumerate(shapes):
        segments[-1].append((m, n))
        size += m + n
        if size >= 2**20 and i < len(shapes) - 1:
            segments.append([])
            size = 0
    lengths = [data.varint() for _ in segments[1:]]
    streams = [data.take(length) for length in lengths]
    if segments:
        streams.append(data.take(len(data.rest)))
    need(not data.rest, "bytes follow")
    return [module for octets, part in zip(streams, segments, strict=True) for module in decode_segment(octets, part)]


def decode_segment(octets: bytes, shapes: list[tuple[int, int]]) -> list[list[Component]]:
    s = Stream(octets)
    modules = read_segment(s, shapes)
    s.end()
    return modules


def read_segment(s: Stream, shapes: list[tuple[int, int]]) -> list[list[Component]]:
    ranks = read_ranks(s, shapes)
    modules, first = [], 0
    for rank in ranks:
        modules.append(read_scales(s, rank, first))
        first = modules[-1][0].scale if rank else first
    first_mean = 16384
    for (m, n), module in zip(shapes, modules, strict=True):
        mean = first_mean
        for j, component in enumerate(module):
            component.left, mean = read_vector(s, m, mean)
            component.right, _ = read_vector(s, n, mean)
            first_mean = mean if j == 0 else first_mean
    return modules


def read_ranks(s: Stream, shapes: list[tuple[int, int]]) -> list[int]:
    ranks: list[int] = []
    entries = 0
    for i, (m, n) in enumerate(shapes):
        near = next((ranks[j] for j in range(i - 1, -1, -1) if shapes[j] == (m, n)), 0)
        before = ranks[-1] if ranks else 0
        count = 0
        while s.bit(
            s.rank_near[min(count, 7)][min(max(near - count + 1, 0), 2)],
            s.rank_before[min(count, 7)][min(max(before - count + 1, 0), 2)],
        ):
            count += 1
            entries += m + n
            need(count <= min(m, n), "rank")
            need(entries <= 4096 * (len(s.octets) + 16), "entries claimed")
        ranks.append(count)
    return ranks


def read_scales(s: Stream, rank: int, before: int) -> list[Component]:
    made = []
    for j in range(rank):
        contexts = s.scales[min(j, 1)]
        size = 0
        while size < 11 and s.bit(contexts[size]):
            size += 1
        d = 0
        if size:
            d = 1
            if size > 1:
                d = s.number(size - 2, 2 | s.bit(contexts[12 + size]))
            if s.bit(contexts[24 + size]):
                d = -d
        before += d
        need(-1024 <= before <= 1023, "scale code")
        made.append(Component(before))
    return made


def bin_of(mean: int) -> int:
    digits = bin(mean)[2:] if mean else ""
    return min(max(2 * len(digits) + (digits[1:2] == "1") - 22, 0), 31)


def read_vector(s: Stream, size: int, mean: int) -> tuple[list[int], int]:
    entries, state, near, own = [], 0, mean, [Context(), Context()]
    for t in range(size):
        q, a, b = state % 2, bin_of(mean), bin_of(near)
        level = entry = 0
        if s.bit(s.zero_mean[q][a], s.zero_near[q][b], own[q]):
            level = read_level(s, a, b)
            entry = 2 * level - q
            need(entry < 2**15, "entry")
            entry = -entry if s.bit() else entry
        entries.append(entry)
        mean += ((65536 * abs(entry) - mean) * (65536 // (3 + min(t, 1023)))) >> 16
        near += (65536 * abs(entry) - near) >> 3
        state = (ODD if level % 2 else EVEN)[state]
    need(any(entries), "a vector of zeros")
    return entries, mean


def read_level(s: Stream, a: int, b: int) -> int:
    for step in range(14):
        if not s.bit(s.more_mean[step][a], s.more_near[min(step, 2)][b]):
            return step + 1
    g = max(a - 16, 0) >> 1
    w = g
    while w < 16 and s.bit():
        w += 1
    return s.number(w) - 2**g + 15


def factors(module: list[Component], shape: tuple[int, int]) -> tuple[list[bytes], list[bytes]]:
    """Columns of the left factor and rows of the right one, as little-endian float32."""
    left, right = [], []
    for c in module:
        h, i, e = c.scale // 32, c.scale % 16, c.scale // 16
        assert (len(c.left), len(c.right)) == shape
        left.append(struct.pack(f"<{len(c.left)}f", *(u * 2.0**h for u in c.left)))
        right.append(struct.pack(f"<{len(c.right)}f", *(v * (MANTISSAS[i] / 128 * 2.0 ** (e - h)) for v in c.right)))
    return left, right
