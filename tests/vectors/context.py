"""Scenarios of the golden vectors by `context`: name -> (comment, bytes). None of them would be as short by `rice`."""

import numpy as np

from compeft_core import Compression, Layout, Update, compress, encode, layout_of, shapes_of
from compeft_core.format.context_body import segments_of, write_segments
from compeft_core.format.header import UpdateHeader, varints, write_header
from compeft_core.format.matrix_shapes import write_shapes
from tests.vectors.rice import Scenarios, flat, noise, sparse

UNIT = b"\x00\x00\x80\x3f"


def products(layout: Layout, seed: int) -> np.ndarray:
    """Each tensor a column times a row, plus a little noise: integers, the same everywhere."""
    parts = []
    for i, t in enumerate(layout.tensors):
        rows, columns = t.shape[0], t.size // t.shape[0]
        column, row = noise(rows, seed + 3 * i), noise(columns, seed + 3 * i + 1)
        parts.append(np.outer(column, row).reshape(-1) + 16 * np.array(noise(t.size, seed + 3 * i + 2)))
    return np.concatenate(parts).astype(np.float32)


def coded(update: Update, shapes: list[tuple[int, int]]) -> bytes:
    blob = encode(update, codec="context", shapes=shapes)
    assert blob[5] == 2, "rice was no longer"
    return blob


def low_rank(shapes: dict[str, tuple[int, ...]], density: float, seed: int, **settings: object) -> bytes:
    layout = layout_of(shapes, dense=[name for name in shapes if name == "head"])
    return coded(compress(layout, products(layout, seed), Compression(density, "norm", **settings)), shapes_of(layout))


def example() -> bytes:
    return coded(flat([1, -1] * 24, density=1.0), [(24, 2)])


def valid() -> Scenarios:
    pair = {"a": (16, 48), "b": (48, 16)}
    layers = {f"{layer}.{side}": (4, 24) if side == "a" else (24, 4) for layer in range(6) for side in "ab"}
    columns = sparse(16 * 2048, [1024 * i + j for i in range(1, 32, 3) for j in range(0, 1024, 2)])
    return {
        "context_by_hand": ("24 rows of + and -, worked out in docs/format.md", example()),
        "context_five_percent": ("a wide and a tall matrix", low_rank(pair, 0.05, 20)),
        "context_twenty_percent": ("a wide and a tall matrix", low_rank(pair, 0.2, 30)),
        "context_half": ("half kept", low_rank(pair, 0.5, 40)),
        "context_all_kept": ("all kept: only signs cost anything", low_rank(pair, 1.0, 50)),
        "context_square": ("as many rows as columns: rows are the lines", low_rank({"a": (40, 40)}, 0.1, 60)),
        "context_windows": ("65 slots: the last one has no context", low_rank({"a": (65, 70)}, 0.1, 70)),
        "context_few_slots": ("matrices of two and three slots", low_rank({"a": (2, 300), "b": (300, 3)}, 0.6, 80)),
        "context_layers": ("twelve matrices: two literals and a copy", low_rank(layers, 0.2, 90)),
        "context_groups": ("a scale for each matrix", low_rank(pair, 0.1, 100, granularity="tensor")),
        "context_dense": ("a dense part follows", low_rank(pair | {"head": (5,)}, 0.1, 110)),
        "context_three_dimensions": ("a tensor of 12 x 8 x 9 as 12 x 72", low_rank({"a": (12, 8, 9)}, 0.1, 120)),
        "context_negative": ("eight of nine entries are negative", coded(flat(([-1.0] * 8 + [1.0]) * 80, density=1), [(720, 1)])),
        "context_two_segments": (
            "the first segment, of 2^20 positions, keeps nothing and has no stream",
            coded(shifted(columns, 1 << 20), [(1024, 1024), (16, 2048)]),
        ),
    }


def shifted(update: Update, by: int) -> Update:
    kept = update.ternary.positions
    return sparse(update.ternary.size + by, (kept.astype(np.int64) + by).tolist())


def body(update: Update, shapes: list[tuple[int, int]]) -> bytes:
    written = write_segments(update.ternary, shapes, 1)
    assert written is not None
    return written


def header(update: Update) -> bytes:
    ternary = update.ternary
    return write_header(UpdateHeader(2, ternary.size, update.dense.size, ternary.group_ends, ternary.scales))


def malformed() -> Scenarios:
    """Each breaks one rule of docs/format.md; most start from `context_by_hand`: head[:13] shapes[13:16] index[16:18] stream[18:]."""
    good = example()
    head, shapes, index, stream = good[:13], good[13:16], good[16:18], good[18:]
    assert (shapes, index, len(stream)) == (b"\x00\x18\x02", b"\x30\x02", 2)
    random = flat(noise(1600, 7), density=0.05)
    wide = head[:6] + varints(1 << 20, 0, 1) + UNIT
    return {
        "context_no_shorter_than_rice": ("by rice it would be no longer", header(random) + body(random, [(40, 40)])),
        "context_of_nothing": ("no ternary part, so rice is as short", b"CPFT\x01\x02\x00\x00\x00"),
        "context_zeros": ("nothing kept: too few bytes for its positions", head[:9] + bytes(4) + shapes + b"\x00\x00"),
        "context_few_bytes_many_kept": (
            "4,096 entries in 2 bytes",
            head[:6] + varints(4096, 0, 1) + UNIT + b"\x00" + varints(64, 64) + varints(4096, 2) + b"\x01\x00",
        ),
        "context_few_bytes_many_positions": (
            "2^20 positions in 4 bytes",
            wide + b"\x00" + varints(1024, 1024) + varints(3, 4) + b"\x01\x02\x03\x04",
        ),
        "context_kept_beyond": ("49 kept of 48", head + shapes + b"\x31\x02" + stream),
        "context_one_less": ("the index says 47", head + shapes + b"\x2f\x02" + stream),
        "context_other_end": (
            "a longer end that decodes to the same bits",
            head + shapes + b"\x30\x03" + stream[:-1] + b"\x5d\xe0",
        ),
        "context_stream_longer": ("a zero byte more than a writer makes", head + shapes + b"\x30\x03" + stream + b"\x00"),
        "context_stream_shorter": ("a byte less than a writer makes", head + shapes + b"\x30\x01" + stream[:1]),
        "context_no_stream": ("48 kept in no bytes", head + shapes + b"\x30\x00"),
        "context_stream_of_nothing": ("nothing kept, in two bytes", head[:9] + bytes(4) + shapes + b"\x00\x02" + stream),
        "context_truncated": ("the last byte is missing", good[:-1]),
        "context_trailing": ("a byte follows", good + b"\x00"),
        "context_zero_scale": ("scale 0 though entries are kept", good[:9] + bytes(4) + good[13:]),
        "context_other_shape": ("12 x 4 instead of 24 x 2: other contexts", head + b"\x00\x0c\x04" + index + stream),
        "context_empty_matrix": ("a matrix of no rows", head + b"\x00\x00\x02" + shapes + index + stream),
        "context_shapes_beyond": ("25 x 2 in a ternary part of 48", head + b"\x00\x19\x02" + index + stream),
        "context_copy_of_nothing": ("a copy before any shape", head + b"\x01\x01" + index + stream),
        "context_copy_of_length_zero": ("a copy of no shapes", head + b"\x00\x0c\x02\x01\x00" + index + stream),
        "context_copy_too_far": ("a copy from 2 before, after one shape", head + b"\x00\x0c\x02\x02\x01" + index + stream),
        "context_literal_for_a_copy": ("12 x 2 twice, both as literals", head + b"\x00\x0c\x02" * 2 + index + stream),
        "context_short_copies": ("8 x 2 copied twice, once each", head + b"\x00\x08\x02" + b"\x01\x01" * 2 + index + stream),
        "context_many_segments": ("4,095 segments are claimed", head[:6] + varints(4095 << 20, 0, 1) + UNIT + manifold()),
    }


def manifold() -> bytes:
    shapes = [(1024, 1024)] * 4095
    assert len(segments_of(shapes)) == 4095
    return write_shapes(shapes) + bytes(9)
