"""One part of an expert, coded and decoded: tensors of a source -> payload and what the manifest says of it, and back to values.

Only one flat float32 vector of the part is in memory, and pieces of it: values are read into it and subtracted in place.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from compeft_client.checkpoint import read_bytes, read_values, width
from compeft_client.expert_file import Part
from compeft_client.plan import PlannedPart
from compeft_client.start import Start, digest_of, initial_vector
from compeft_core import Encoded, Tensor, Update, Vector, add_to, compress, encode, parse
from compeft_core.errors import InputError
from compeft_proto.errors import WrongBaseError
from compeft_proto.manifest import coding_of, read_payload
from compeft_proto.v1 import expert_pb2 as pb

Progress = Callable[[int], None]
"""Told how many parameters have just been done."""
CODECS = ("rice",)
WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True, eq=False)
class CodedPart:
    """A part and its payload. `cosine` is that of what was to be coded and what was; 1.0 for exact bytes."""

    part: Part
    payload: bytes
    cosine: float = 1.0


def silent(_done: int) -> None:
    """Progress that nobody watches."""


def code(planned: PlannedPart, start: Start, codec: str, progress: Progress = silent) -> CodedPart:
    """Code one planned part. Errors: InputError for a start that is not this expert's; NotFiniteError; those of reading."""
    if codec not in CODECS:
        raise InputError(f"codec is {codec!r}, known are {', '.join(CODECS)}")
    if planned.compression is None:
        payload = b"".join(map(read_bytes, planned.tensors))
        progress(planned.layout.size)
        return CodedPart(_part(planned, payload), payload)
    vector, digest = task_vector(planned, start, progress)
    update = compress(planned.layout, vector, planned.compression, workers=WORKERS)
    cosine = _cosine(vector[: update.ternary.size], update)
    del vector
    payload = encode(update, workers=WORKERS)
    coding = coding_of(parse(payload, workers=WORKERS), planned.compression)
    used = planned.uses(start)
    seed = start.seed if used else None
    part = _part(planned, payload, coding, seed, digest if used and seed is None else b"")
    return CodedPart(part, payload, cosine)


def task_vector(planned: PlannedPart, start: Start, progress: Progress = silent) -> tuple[Vector, bytes]:
    """Tensors minus where they started, float32 of shape (layout.size,), and the state digest of the start."""
    vector = initial_vector(planned.file, planned.layout, start)
    digest = digest_of(planned.layout, vector)
    at, moved, length = 0, 0.0, 0.0
    for tensor in planned.tensors:
        for piece in read_values(tensor):
            part = vector[at : at + piece.size]
            started = bool(part.any())
            np.subtract(piece, part, out=part)
            if started:
                moved, length = moved + float(np.dot(part, part)), length + float(np.dot(piece, piece))
            at += piece.size
            progress(piece.size)
    if moved >= length > 0:
        raise InputError(
            f"the initial values given are not where this expert started: it is {math.sqrt(moved / length):.2f} times its own "
            "length away from them, further than from zero"
        )
    return vector, digest


def decode_part(part: Part, payload: bytes, start: Start) -> Vector:
    """The values of a coded part, float32 of shape (layout.size,): its start plus what was coded.

    Errors: WrongBaseError if `start` is not the one it needs; FormatError; InputError.
    """
    vector = initial_vector(part.file, part.layout, _start_of(part, start))
    if part.initial_digest and digest_of(part.layout, vector) != part.initial_digest:
        raise WrongBaseError(
            f"--init is not what this expert was packed against: state {part.initial_digest.hex()[:16]} is needed"
        )
    add_to(_checked(part, payload), vector, workers=WORKERS)
    return vector


def decode_change(part: Part, payload: bytes) -> Vector:
    """What was coded, without the start: float32 of shape (layout.size,). Errors: FormatError."""
    vector = np.zeros(part.layout.size, np.float32)
    add_to(_checked(part, payload), vector, workers=WORKERS)
    return vector


def exact_tensors(part: Part, payload: bytes) -> Iterator[tuple[Tensor, str, bytes]]:
    """(tensor, dtype, own bytes) of a part that is not coded."""
    at = 0
    for tensor, dtype in zip(part.layout.tensors, part.dtypes, strict=True):
        size = tensor.size * width(dtype)
        yield tensor, dtype, payload[at : at + size]
        at += size


def _start_of(part: Part, given: Start) -> Start:
    """Where a part starts: as its manifest says, which may need what was given. Errors: InputError."""
    if part.seed is not None:
        return Start(seed=part.seed)
    if not part.initial_digest:
        return Start()
    if given.directory is None:
        raise InputError("this expert was packed against a directory of initial values: give the same one, --init DIR")
    return given


def _checked(part: Part, payload: bytes) -> Encoded:
    if part.coding is None:
        raise InputError(f"part of {part.file} is not coded")
    return read_payload(part.coding, payload, part.layout)


def _part(
    planned: PlannedPart, payload: bytes, coding: pb.Coding | None = None, seed: int | None = None, digest: bytes = b""
) -> Part:
    dtypes = tuple(t.dtype for t in planned.tensors)
    return Part(planned.file, planned.layout, dtypes, len(payload), hashlib.sha256(payload).digest(), coding, seed, digest)


def _cosine(front: Vector, update: Update) -> float:
    """Cosine of the ternary part and of what was kept of it; 1.0 if there is none."""
    ternary = update.ternary
    values = np.repeat(ternary.scales, ternary.group_counts)
    length = math.sqrt(float(np.dot(front, front)) * float(np.dot(values, values)))
    return float(np.dot(np.abs(front[ternary.positions]), values)) / length if length else 1.0
