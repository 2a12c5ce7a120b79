"""What the golden vectors of product-space encodings hold: symbols for the valid ones, forged streams for the malformed ones."""

from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np

from compeft_core.product import ProductSymbols, write_product
from tests.core.product import reference_decoder as reference
from tests.core.product.strategies import with_parity

Shapes = list[tuple[int, int]]
Vector = tuple[str, Shapes, bytes]
"""Comment, shapes, blob."""
HEAD = b"CPFT\x01\x03"


def valid() -> dict[str, Vector]:
    """By name."""
    made = {
        "example": ("the example of the page", _symbols([(3, 2)], [1], [-300], [[2, 0, -1], [0, 4]])),
        "no-modules": ("no modules at all", _symbols([], [], [], [])),
        "nothing-kept": ("three modules, no components", _symbols([(5, 4)] * 3, [0, 0, 0], [], [])),
        "one-by-one": ("a module of one entry", _symbols([(1, 1)], [1], [0], [[2], [-2]])),
        "full-rank": ("as many components as rows", _symbols([(2, 3)], [2], [-10, -20], [[2, 0], [0, 0, 2], [2, 2], [-2, 0, 1]])),
        "scale-edges": ("the first and the last scale code", _symbols([(2, 2)] * 2, [1, 1], [-1024, 1023], [[2, 0], [0, 2]] * 2)),
        "scale-falls": (
            "scale codes that rise and fall",
            _symbols([(2, 2)] * 2, [2, 2], [5, -900, 6, 901], [[2, 0], [0, 2]] * 4),
        ),
        "exp-golomb": ("levels at and around the end of the unary part", _magnitudes(range(24, 40))),
        "large": ("the largest entries", _symbols([(2, 2)], [1], [-300], [[32766, -32766], [-32766, 2]])),
        "growing": ("magnitudes of all sizes", _magnitudes([2**i for i in range(1, 15)])),
        "sparse": ("one entry in a thousand", _random(1, [(1000, 2000)], [3], 0.001, 1)),
        "dense": ("no zeros", _random(2, [(200, 100)], [4], 1.0, 5)),
        "signs": ("all minus", _symbols([(4, 3)], [1], [-1], [[-2, 0, -1, -1], [-2, -2, -2]])),
        "states": ("a path through all states", _random(3, [(300, 300)], [1], 0.5, 2)),
        "high-ranks": ("more than seven components, ranks that repeat", _random(4, [(20, 30)] * 4, [12, 12, 11, 12], 0.3, 2)),
        "mixed": ("shapes and ranks that alternate", _random(5, [(30, 10), (10, 30), (30, 10), (7, 7)], [2, 0, 3, 1], 0.4, 3)),
        "segments": ("three segments, the first without components", _segments()),
        "quality": ("entries of hundreds", _random(6, [(64, 48)], [2], 1.0, 700)),
    }
    vectors = {name: (comment, list(s.shapes), write_product(s)) for name, (comment, s) in made.items()}
    for largest in (1, 3, 9):
        vectors[f"expert-{largest}"] = (f"like an expert, magnitudes of {largest} at most", EXPERT_SHAPES, _expert(largest))
    return vectors


def malformed() -> dict[str, Vector]:
    """By name."""
    shapes: Shapes = [(3, 2)]
    good = write_product(_symbols(shapes, [1], [-300], [[2, 0, -1], [0, 4]]))
    two = write_product(_symbols([(3, 2)] * 2, [0, 0], [], []))
    many, segments = write_product(_segments()), list(_segments().shapes)
    stream = good[7:]
    wrong = {
        "empty": ("no bytes", shapes, b""),
        "cut-head": ("a part of the head", shapes, good[:5]),
        "magic": ("another magic", shapes, b"CPFX" + good[4:]),
        "version": ("version 2", shapes, good[:4] + b"\x02" + good[5:]),
        "codec": ("codec 2", shapes, good[:5] + b"\x02" + good[6:]),
        "no-count": ("nothing after the head", shapes, HEAD),
        "fewer-modules": ("one module where two are expected", [(3, 2)] * 2, good),
        "more-modules": ("two modules where one is expected", shapes, two),
        "long-varint": ("a number of modules that is not minimal", shapes, HEAD + b"\x81\x00" + stream),
        "huge-varint": ("a number of modules beyond 32 bits", shapes, HEAD + b"\xff\xff\xff\xff\x1f" + stream),
        "no-modules-but-bytes": ("bytes where there is no module", [], HEAD + b"\x00\x01"),
        "short-stream": ("a stream without its last forty bytes", EXPERT_SHAPES, _expert(3)[:-40]),
        "half-stream": ("half a stream", EXPERT_SHAPES, _expert(3)[: len(_expert(3)) // 2]),
        "zero-follows": ("a zero after the stream", shapes, good + b"\x00"),
        "byte-follows": ("a byte after the stream", EXPERT_SHAPES, _expert(3) + b"\x07"),
        "last-byte": ("another last byte that decodes to the same", EXPERT_SHAPES, _other_end(EXPERT_SHAPES)),
        "segment-too-long": ("a segment longer than the encoding", segments, many[:7] + b"\xff\x7f" + many[8:]),
        "segment-split": ("a segment that ends one byte early", segments, many[:7] + bytes([many[7] - 1]) + many[8:]),
        "no-lengths": ("lengths of segments missing", segments, many[:7]),
    }
    one = [*_rank(1), *_scale(0)]
    forged = {
        "rank-above-side": ("three components in a module of two columns", shapes, _rank(3)),
        "rank-endless": ("components without end", [(1 << 20, 1 << 20)], [1] * 200_000),
        "claims-too-much": ("more entries than the stream may claim", [(1 << 21, 1 << 21)], [*_rank(1), *_scale(0), 1, 0, 0]),
        "scale-above": ("a scale code of 1024", shapes, [*_rank(1), *_scale(1024)]),
        "scale-below": ("a scale code of -1025", shapes, [*_rank(1), *_scale(-1025)]),
        "scale-far": ("a scale code of 2047", shapes, [*_rank(1), *_scale(2047)]),
        "left-zero": ("a left vector of zeros", shapes, [*one, 0, 0, 0, 1, 0, 0, 0]),
        "right-zero": ("a right vector of zeros", shapes, [*one, 1, 0, 0, 0, 0, 0, 0]),
        "second-zero": (
            "the second component is zero",
            shapes,
            [*_rank(2), *_scale(0), *_scale(1), *[1, 0, 0, 0, 0, 1, 0, 0, 0], 0, 0, 0],
        ),
        "entry-too-large": ("an entry of 32768", shapes, [*one, *_level(16384), 0]),
        "entry-far-too-large": ("the largest number that Exp-Golomb can say", shapes, [*one, *[1] * 15, *[1] * 32, 0]),
    }
    for name, (comment, sides, bits) in forged.items():
        wrong[name] = (comment, sides, HEAD + bytes([len(sides)]) + forge(sides, bits))
    return wrong


EXPERT_SHAPES: Shapes = [(48, 24), (24, 48), (48, 48), (48, 24), (24, 48), (48, 48)]


def _expert(largest: int, seed: int = 7) -> bytes:
    return write_product(_random(seed, EXPERT_SHAPES, [1, 2, 0, 1, 2, 1], 0.3, largest))


def _symbols(shapes: Shapes, ranks: Sequence[int], scales: Sequence[int], vectors: Iterable[Sequence[int]]) -> ProductSymbols:
    """Vectors are given nearly: each entry becomes one of about its magnitude that its state allows."""
    fitted = [with_parity(np.abs(np.array(v)), np.array(v) < 0) for v in vectors]
    entries = np.concatenate([np.zeros(0, np.int16), *fitted])
    return ProductSymbols(tuple(shapes), np.array(ranks, np.int64), np.array(scales, np.int64), entries)


def _magnitudes(magnitudes: Iterable[int]) -> ProductSymbols:
    """One component whose left entries are near these magnitudes, and whose right ones are the same backwards."""
    wanted = np.array(list(magnitudes))
    vectors = [with_parity(v, np.arange(v.size) % 3 == 0) for v in (wanted, wanted[::-1])]
    return _symbols([(wanted.size, wanted.size)], [1], [-250], [v.tolist() for v in vectors])


def _random(seed: int, shapes: Shapes, ranks: Sequence[int], density: float, largest: int) -> ProductSymbols:
    random = np.random.default_rng(seed)
    vectors = []
    for (m, n), rank in zip(shapes, ranks, strict=True):
        for size in [m, n] * rank:
            magnitudes = random.integers(1, largest + 1, size) * (random.random(size) < density)
            magnitudes[random.integers(size)] = 2
            vectors.append(with_parity(magnitudes, random.random(size) < 0.5).tolist())
    return _symbols(shapes, ranks, random.integers(-300, -200, sum(ranks)).tolist(), vectors)


def _segments() -> ProductSymbols:
    """Two long modules without components end the first two segments."""
    shapes = [(1 << 20, 3), (5, 4), (3, 1 << 20), (4, 3)]
    return _symbols(shapes, [0, 1, 0, 1], [-200, -210], [[2, 0, 0, 1, 0], [0, 0, 2, 1], [2, 0, 0, 1], [0, -2, 0]])


def _other_end(shapes: Shapes) -> bytes:
    """The encoding of an expert whose last byte could be one more: the same decisions, and not what a writer ends with."""
    for seed in range(400):
        blob = _expert(3, seed)
        other = blob[:-1] + bytes([blob[-1] + 1 & 255])
        with suppress(reference.Malformed):
            if reference.read_segment(reference.Stream(other[7:]), shapes) == reference.read_segment(
                reference.Stream(blob[7:]), shapes
            ):
                return other
    raise AssertionError("no encoding of these has a spare last byte")


def _rank(count: int) -> list[int]:
    return [1] * count + [0]


def _scale(difference: int) -> list[int]:
    """The decisions for a difference of scale codes."""
    size = abs(difference).bit_length()
    ones = [1] * size + [0] * (size < 11)
    return ones + [abs(difference) >> i & 1 for i in range(size - 2, -1, -1)] + [int(difference < 0)] * (size > 0)


def _level(level: int) -> list[int]:
    """The decisions for an entry of this level, above 14, where the mean is small; without its sign."""
    rest = level - 14
    size = rest.bit_length() - 1
    return [1] * 15 + [1] * size + [0] * (size < 16) + [rest >> i & 1 for i in range(size - 1, -1, -1)]


class Forger(reference.Stream):
    """A writer of any decisions: what the second decoder would ask for is answered from a list (0 after its end), and written."""

    def __init__(self, decisions: Sequence[int]) -> None:
        super().__init__(b"")
        self.decisions, self.made, self.asked = list(decisions), bytearray(), 0

    def bit(self, *contexts: reference.Context) -> int:
        p = reference.squash(sum(c.logit for c in contexts)) if contexts else reference.HALF
        middle = self.low + (((self.high - self.low) * p) >> 16)
        y = self.decisions[self.asked] if self.asked < len(self.decisions) else 0
        self.asked += 1
        self.low, self.high = (self.low, middle) if y else (middle + 1, self.high)
        while (self.low ^ self.high) >> 24 == 0:
            self.made.append(self.low >> 24)
            self.low, self.high = (self.low << 8) % 2**32, (self.high << 8) % 2**32 + 255
        for c in contexts:
            c.learn(65536 * y - p)
        return y


def forge(shapes: Shapes, decisions: Sequence[int]) -> bytes:
    """The stream of one segment with these decisions, until the rule that it breaks."""
    stream = Forger(decisions)
    with suppress(reference.Malformed):
        reference.read_segment(stream, shapes)
    return bytes(stream.made) + (bytes([(stream.low >> 24) + 1]) if stream.low else b"")
