"""Kernels against the second decoder on many small cases: `python -m tests.core.agree --cases 100000`.

A case is a random update and random shapes. Both decoders must read what each codec writes for it, and must say the same of it
after a byte was changed. As small updates are seldom shorter by `context`, its streams are also compared by themselves.
"""

import argparse
from collections import Counter

import numpy as np

from compeft_core import FormatError, Layout, LimitError, Update, compress, decode, densify, encode, layout_of, parse, shapes_of
from compeft_core.compress import Compression
from compeft_core.format.context_body import MatrixSegment, segments_of, write_stream
from compeft_core.format.encoding import CODECS
from tests.core.format import reference_context, reference_decoder
from tests.core.strategies import rank_one

EDGES = [(1, 70), (70, 1), (67, 3), (2, 2, 9)]
"""Shapes at the edges of the model: one line, one slot, more slots than a window, three dimensions."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(dict(run(arguments.cases, arguments.seed)))


def run(cases: int, seed: int) -> Counter[str]:
    """What was compared, and how often. Raises AssertionError at the first difference."""
    seen: Counter[str] = Counter()
    for case in range(cases):
        rng = np.random.default_rng([seed, case])
        layout, update = random_update(rng)
        shapes = shapes_of(layout)
        for codec in CODECS:
            blob = encode(update, codec=codec, shapes=shapes)
            seen[f"{compare(blob, update)} read"] += 1
            seen["changed, " + compare_changed(changed(blob, rng))] += 1
        for segment in segments_of(shapes):
            seen[compare_stream(update, segment)] += 1
    return seen


def random_update(rng: np.random.Generator) -> tuple[Layout, Update]:
    shapes = [tuple(rng.integers(1, 14, 2).tolist()) for _ in range(rng.integers(1, 4))]
    shapes += [EDGES[rng.integers(len(EDGES))]] if rng.random() < 0.1 else []
    layout = layout_of({f"t{i}": shape for i, shape in enumerate(shapes)} | {"z": (2,)}, dense=["z"])
    vector = rank_one(layout, int(rng.integers(2**32)), noise=rng.choice([0.0, 0.1, 1.0]))
    granularity = "tensor" if rng.random() < 0.3 else "vector"
    return layout, compress(layout, vector, Compression(float(rng.choice([0.02, 0.1, 0.3, 0.7, 1.0])), granularity=granularity))


def compare(blob: bytes, update: Update) -> str:
    """The codec of a blob that both decoders must read as `update`."""
    ours, second, vector = parse(blob), reference_decoder.decode(blob), densify(update)
    assert densify(decode(ours)).tobytes() == vector.tobytes()
    assert second.entries == {p: float(vector[p]) for p in update.ternary.positions.tolist()}
    assert (second.dense, second.codec, second.shapes) == (update.dense.tolist(), ours.codec, list(ours.shapes))
    return second.codec


def changed(blob: bytes, rng: np.random.Generator) -> bytes:
    octets = bytearray(blob)
    octets[rng.integers(6, len(octets))] = rng.integers(256)
    return bytes(octets)


def compare_changed(blob: bytes) -> str:
    """Whether both decoders refuse a blob, or read the same from it."""
    try:
        second = reference_decoder.decode(blob)
    except reference_decoder.Malformed:
        try:
            parse(blob)
        except (FormatError, LimitError):
            return "refused"
        raise AssertionError(f"only the second decoder refuses {blob.hex()}") from None
    vector = densify(decode(parse(blob)))
    assert second.entries == {p: float(vector[p]) for p in np.flatnonzero(vector[: second.ternary_size]).tolist()}
    return "read"


def compare_stream(update: Update, segment: MatrixSegment) -> str:
    ternary = update.ternary
    if ternary.count == 0:
        return "empty stream"
    stream = write_stream(ternary, segment, 0, ternary.count)
    shapes = list(zip(segment.rows.tolist(), segment.columns.tolist(), strict=True))
    signs = reference_context.Segment(stream, ternary.count, ternary.size).walk(shapes)
    assert signs == dict(zip(ternary.positions.tolist(), ternary.negative.tolist(), strict=True))
    return "stream read"


if __name__ == "__main__":
    main()
