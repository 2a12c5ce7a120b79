"""A decoder of exact deltas written from docs/exact-delta.md: plain Python, one bit at a time, nothing shared with the product."""

from collections import defaultdict

BLOCK = 1 << 20


def _half_table() -> list[int]:
    """docs/format.md, section 5: 2^48 // (2^32 + e_i), with e_0 = 2^32 and e_(i+1) = (e_i * 4278222805) >> 32."""
    found, e = list[int](), 1 << 32
    for _ in range(3072):
        found.append((1 << 48) // ((1 << 32) + e))
        e = (e * 4278222805) >> 32
    return found


HALF = _half_table()


def squash(logit: int) -> int:
    """The probability of a logit, both in units of 2^-16."""
    i = min(max(logit >> 8, -3071), 3071)
    return HALF[i] if i >= 0 else 65536 - HALF[-i]


class Stream:
    """Bits of one block, with the contexts that learn from them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4
        self.low, self.high = 0, 2**32 - 1
        self.word = int.from_bytes((data + bytes(4))[:4], "big")
        self.logits: defaultdict[tuple[object, ...], int] = defaultdict(int)
        self.ages: defaultdict[tuple[object, ...], int] = defaultdict(int)

    def raw(self, p: int) -> int:
        """A bit that is 1 with probability p / 65536."""
        middle = self.low + (((self.high - self.low) * p) >> 16)
        bit = int(self.word <= middle)
        self.low, self.high = (self.low, middle) if bit else (middle + 1, self.high)
        while self.low >> 24 == self.high >> 24:
            octet = self.data[self.at] if self.at < len(self.data) else 0
            self.word = (self.word << 8 & 0xFFFFFFFF) | octet
            self.low, self.high, self.at = self.low << 8 & 0xFFFFFFFF, self.high << 8 & 0xFFFFFFFF | 255, self.at + 1
        return bit

    def bit(self, *contexts: tuple[object, ...]) -> int:
        """A bit in one or two contexts, which learn."""
        logit = sum(self.logits[c] for c in contexts)
        p = squash(logit)
        bit = self.raw(p)
        for c in contexts:
            rate = max(8 * 65536 // (32 + self.ages[c]), 256)
            self.logits[c] = min(max(self.logits[c] + (((bit << 16) - p) * rate >> 16), -(1 << 20)), 1 << 20)
            self.ages[c] = min(self.ages[c] + 1, 1023)
        return bit


def reference_decode(blob: bytes, old: list[int], bits: int) -> list[int]:
    """The new words."""
    new, at = list[int](), 0
    for first in range(0, len(old), BLOCK):
        length = int.from_bytes(blob[at : at + 4], "little")
        new += _block(Stream(blob[at + 4 : at + 4 + length]), old[first : first + BLOCK], bits)
        at += 4 + length
    assert at == len(blob)
    return new


def _block(stream: Stream, old: list[int], bits: int) -> list[int]:
    for exponent in range(256):
        stream.logits["changed", exponent] = -3 * 65536
    new, history, direction, size = list[int](), [0] * 8, 2, 0
    for word in old:
        exponent, negative = (word >> (bits - 9)) & 255, word >> (bits - 1)
        changed = stream.bit(("changed", exponent), ("near", history[-2], history[-1], min(sum(history), 3)))
        history = [*history[1:], changed]
        rank = word if not negative else 2 ** (bits - 1) - 1 - word
        if changed:
            down = stream.bit(("sign", exponent, negative), ("last sign", direction))
            width = 0
            while width < 32 and stream.bit(("size", exponent, width), ("last size", size, width)):
                width += 1
            step = 1
            for place in range(width):
                step = 2 * step + (stream.bit(("upper", width)) if place == 0 else stream.raw(1 << 15))
            rank, direction, size = rank - step if down else rank + step, down, width
        new.append(rank if rank >= 0 else 2 ** (bits - 1) - 1 - rank)
    return new
