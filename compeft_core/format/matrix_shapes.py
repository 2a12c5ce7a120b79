"""Shapes of the matrices that the codec `context` models, and their bytes in an encoding.

Networks repeat their layers, so a list of shapes is written as literals and copies of what came up to 64 shapes before, as in LZ77.
Example: (8, 64), (64, 8), (8, 64), (64, 8), (8, 64) is two literals, then "copy 3 shapes from 2 back".

Invariant: a copy is as long as it can be, from the least distance, which makes the bytes a function of the shapes; `read_shapes` refuses
all other bytes.
"""

import math
from collections.abc import Sequence

from compeft_core.errors import FormatError, InputError, LimitError
from compeft_core.format.header import Reader, varints
from compeft_core.layout import MAX_TENSORS, Layout

Shape = tuple[int, int]
REACH = 64
"""Most shapes that a copy may look back."""


def shapes_of(layout: Layout) -> list[Shape]:
    """(rows, columns) of each ternary tensor that is not empty: its first dimension, and the product of the others (1 if none)."""
    tensors = [t for t in layout.tensors if t.kind == "ternary" and t.size > 0]
    return [(math.prod(t.shape[:1]), math.prod(t.shape[1:])) for t in tensors]


def check_shapes(shapes: Sequence[Shape], size: int) -> None:
    """Check that the shapes describe a ternary part of `size` parameters. Errors: InputError, LimitError."""
    if len(shapes) > MAX_TENSORS:
        raise LimitError(f"{len(shapes)} shapes, the cap is {MAX_TENSORS}")
    if any(rows < 1 or columns < 1 for rows, columns in shapes) or sum(r * c for r, c in shapes) != size:
        raise InputError(f"shapes hold {sum(r * c for r, c in shapes)} parameters, or one is empty; the ternary part has {size}")


def write_shapes(shapes: Sequence[Shape]) -> bytes:
    """Items in order: 0, rows, columns; or a distance from 1 to REACH, and the number of shapes to copy from that distance back."""
    octets, at = bytearray(), 0
    while at < len(shapes):
        length, distance = _longest_copy(shapes, at)
        octets += varints(distance, length) if length else varints(0, *shapes[at])
        at += length or 1
    return bytes(octets)


def read_shapes(reader: Reader, size: int) -> list[Shape]:
    """The shapes of `size` parameters. Errors: FormatError."""
    start, shapes, held = reader.at, list[Shape](), 0
    while held < size:
        fresh = _read_item(reader, shapes)
        held += sum(rows * columns for rows, columns in fresh)
        shapes += fresh
    if held != size or write_shapes(shapes) != reader.blob[start : reader.at]:
        raise FormatError(f"shapes hold {held} parameters where the header says {size}, or are not written as they must be")
    return shapes


def _read_item(reader: Reader, shapes: list[Shape]) -> list[Shape]:
    distance = reader.varint()
    if distance == 0:
        fresh = [(reader.varint(), reader.varint())]
    else:
        length = reader.varint()
        if distance > min(len(shapes), REACH) or not 0 < length <= MAX_TENSORS:
            raise FormatError(f"shape {len(shapes)} copies {length} from {distance} before, at most {REACH} before are allowed")
        last = shapes[len(shapes) - distance :]
        fresh = (last * (length // distance + 1))[:length]
    if len(shapes) + len(fresh) > MAX_TENSORS or 0 in fresh[0]:
        raise FormatError(f"more than {MAX_TENSORS} shapes, or an empty one")
    return fresh


def _longest_copy(shapes: Sequence[Shape], at: int) -> tuple[int, int]:
    """Length and distance of the longest copy for the shapes from `at` on, of these the least distance; (0, 0) if absent."""
    best, recent = (0, 0), shapes[max(0, at - REACH) : at][::-1]
    if shapes[at] not in recent:
        return best
    for distance in (d for d, shape in enumerate(recent, 1) if shape == shapes[at]):
        length = 1
        while at + length < len(shapes) and shapes[at + length] == shapes[at + length - distance]:
            length += 1
        best = max(best, (length, -distance))
        if at + length == len(shapes):
            break  # a greater distance cannot copy more
    return best[0], -best[1]
