"""The body by `context` for the second decoder, in plain Python, written from docs/format.md alone."""

import math
from functools import cache

from tests.core.format.reference_bytes import Bytes, need

Shapes = list[tuple[int, int]]
ONE = 65536


def decode(data: Bytes, ternary_size: int) -> tuple[dict[int, bool], Shapes]:
    """Position -> whether it is negative; and the shapes."""
    matrices = read_shapes(data, ternary_size)
    segments = segments_of(matrices)
    sizes = [sum(rows * columns for rows, columns in shapes) for shapes in segments]
    index = [(data.varint(), data.varint()) for _ in segments]
    need(all(n <= size and (n > 0 or length == 0) for (n, length), size in zip(index, sizes, strict=True)), "index")
    streams = sum(length for _, length in index)
    need(ternary_size <= 4096 * streams and sum(n for n, _ in index) <= 64 * streams, "too few bytes")
    need(streams <= len(data.rest), "too short")
    signs: dict[int, bool] = {}
    base = 0
    for shapes, size, (n, length) in zip(segments, sizes, index, strict=True):
        if n > 0:
            signs |= {base + p: negative for p, negative in Segment(data.take(length), n, size).walk(shapes).items()}
        base += size
    return signs, matrices


def read_shapes(data: Bytes, ternary_size: int) -> Shapes:
    shapes: Shapes = []
    copies: list[tuple[int, int, int]] = []
    while sum(rows * columns for rows, columns in shapes) < ternary_size:
        distance = data.varint()
        need(distance <= min(64, len(shapes)), "distance")
        length = data.varint() if distance else 0
        need(distance == 0 or 0 < length <= 262144 - len(shapes), "length")
        copies.append((len(shapes), length, distance))
        shapes += [shapes[len(shapes) - distance + i % distance] for i in range(length)] or [(data.varint(), data.varint())]
        need(all(shapes[-1]) and len(shapes) <= 262144, "shapes")
    need(sum(rows * columns for rows, columns in shapes) == ternary_size, "sum of shapes")
    need(all(copy[1:] == longest_copy(shapes, copy[0]) for copy in copies), "another copy must be used")
    return shapes


def longest_copy(shapes: Shapes, at: int) -> tuple[int, int]:
    """Length and distance, (0, 0) if there is none."""
    found = (0, 0)
    for distance in range(1, min(64, at) + 1):
        length = 0
        while at + length < len(shapes) and shapes[at + length] == shapes[at + length - distance]:
            length += 1
        if length > found[0]:
            found = (length, distance)
    return found


def segments_of(shapes: Shapes) -> list[Shapes]:
    segments: list[Shapes] = []
    size = 2**20
    for rows, columns in shapes:
        if size >= 2**20:
            segments.append([])
            size = 0
        segments[-1].append((rows, columns))
        size += rows * columns
    return segments


@cache
def halves() -> list[int]:
    table, e = [], 2**32
    for _ in range(3072):
        table.append(2**48 // (2**32 + e))
        e = e * 4278222805 >> 32
    return table


def squash(z: int) -> int:
    i = clamp(z >> 8, -3071, 3071)
    return halves()[i] if i >= 0 else ONE - halves()[-i]


def clamp(x: int, a: int, b: int) -> int:
    return min(max(x, a), b)


class Coder:
    def __init__(self, stream: bytes) -> None:
        self.stream, self.used = stream, 0
        self.low, self.high = 0, 2**32 - 1

    def bit(self, probability: int) -> int:
        middle = self.low + ((self.high - self.low) * probability >> 16)
        word = int.from_bytes((self.stream[self.used :] + bytes(4))[:4], "big")
        bit = int(word <= middle)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while self.low >> 24 == self.high >> 24:
            self.used += 1
            self.low = self.low << 8 & 0xFFFFFFFF
            self.high = (self.high << 8 & 0xFFFFFFFF) + 255
        return bit

    def finish(self) -> None:
        end = bytes([(self.low >> 24) + 1]) if self.low > 0 else b""
        need(self.used <= len(self.stream) and self.stream[self.used :] == end, "end of a stream")


class Segment:
    def __init__(self, stream: bytes, n: int, size: int) -> None:
        self.coder, self.n = Coder(stream), n
        density = clamp(n * 65536 // size, 1, 65535)
        self.base = next(z for z in range(-3071 * 256, 3072 * 256, 256) if squash(z) >= density)
        self.slope = min(2**48 // (density * (65536 - density)), 2**20)
        self.f, self.f_age = [0] * 32, [0] * 32
        self.g, self.g_age = [squash((2 * b + 1) * 4096) for b in range(32)], [0] * 32

    def rate(self, age: int) -> int:
        return self.slope // (40 + min(age, 511))

    def walk(self, shapes: Shapes) -> dict[int, bool]:
        signs: dict[int, bool] = {}
        base = 0
        for rows, columns in shapes:
            signs |= {base + place: negative for place, negative in self.matrix(rows, columns).items()}
            base += rows * columns
        self.coder.finish()
        need(len(signs) == self.n, "another number of entries")
        return signs

    def matrix(self, rows: int, columns: int) -> dict[int, bool]:
        lines, slots = max(rows, columns), min(rows, columns)
        bias, ages = [0] * slots, [0] * slots
        pair: dict[tuple[int, int], int] = {}
        sign: dict[tuple[int, int], int] = {}
        signs: dict[int, bool] = {}
        for line in range(lines):
            x: dict[int, int] = {}
            for s in range(slots):
                near = [q for q in x if q // 64 == s // 64]
                d = sum(sign.get((s, q), 0) * x[q] for q in near)
                b = min(abs(d) >> 13, 31)
                probability = squash(self.base + bias[s] + self.f[b] + sum(pair.get((s, q), 16384) for q in near))
                y = self.coder.bit(probability)
                error = 65536 * y - probability
                bias[s] += error * self.rate(line) >> 16
                self.f[b] += error * self.rate(self.f_age[b]) >> 16
                self.f_age[b] += 1
                for q in near:
                    pair[s, q] = clamp(pair.get((s, q), 16384) + (error >> 4), -(2**24), 2**24)
                if y:
                    plus = self.sign(d, b)
                    step = (65536 * plus - squash(d)) * math.isqrt(2**34 // (4 + min(ages[s], 511))) >> 16
                    ages[s] += 1
                    for q in near:
                        sign[s, q] = clamp(sign.get((s, q), 0) + step * x[q], -(2**24), 2**24)
                    x[s] = 2 * plus - 1
                    signs[line * columns + s if rows >= columns else s * columns + line] = not plus
        return signs

    def sign(self, d: int, b: int) -> int:
        """1 for +s."""
        plus = self.coder.bit(self.g[b] if d >= 0 else 65536 - self.g[b])
        target = 65536 if plus == (d >= 0) else 0
        self.g[b] = clamp(self.g[b] + ((target - self.g[b]) * (65536 // (12 + min(self.g_age[b], 511))) >> 16), 64, 65472)
        self.g_age[b] += 1
        return plus
