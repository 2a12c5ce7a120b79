"""Parts that are an exact delta: a checkpoint's words against those of the checkpoint that it was trained from, without loss.

A plan of a few dozen million words a part bounds the memory: old words, new words and payload of one part are there at a time, and the
payloads of the parts that are done.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from compeft_client.checkpoints.initial_values import Start
from compeft_client.checkpoints.safetensors_file import Stored, read_bytes
from compeft_client.checkpoints.source import Source
from compeft_client.packing.plan import PlannedPart
from compeft_client.packing.tensor_rules import Treatment
from compeft_client.workers import WORKERS
from compeft_core import Layout, Tensor, layout_of
from compeft_core.errors import InputError
from compeft_core.exact import decode_exact, encode_exact
from compeft_proto.errors import WrongBaseError
from compeft_proto.expert_manifest import FLOATS, WIDTHS, FilePart

WORDS: dict[int, type[np.uint16 | np.uint32]] = {2: np.uint16, 4: np.uint32}
PART_WORDS = 2**26
"""Most words of a part, unless one tensor alone has more."""


def plan_exact(source: Source, start: Start) -> list[PlannedPart]:
    """The parts of a lossless pack: floats that the start has too, of the same type, as deltas; everything else by its own bytes.

    Errors: InputError if the start is not a directory, or has none of the tensors.
    """
    if start.directory is None:
        raise InputError(f"--exact codes {source.path} against an earlier checkpoint: give it, --init DIR")
    parts, deltas = list[PlannedPart](), 0
    for file, header in source.files.items():
        tensors = sorted(header.tensors.values(), key=lambda t: t.name.encode())
        known = [t for t in tensors if _earlier(start, file, t) is not None]
        for width in WORDS:
            for run in _runs([t for t in known if WIDTHS[t.dtype] == width]):
                parts.append(_planned(file, run, "delta"))
                deltas += 1
        if others := [t for t in tensors if t not in known]:
            parts.append(_planned(file, others, "exact"))
    if not deltas:
        raise InputError(f"--init {start.directory.path} has no float tensor of {source.path}, by file, name, shape and type")
    return parts


def encode_delta(planned: PlannedPart, start: Start) -> tuple[bytes, bytes]:
    """The payload of a planned delta, and the SHA-256 of the words it is taken against. Errors: InputError; those of reading."""
    old = _words(_start_tensors(planned.file, planned.layout, start), planned.tensors[0].dtype)
    new = _words(planned.tensors, planned.tensors[0].dtype)
    return encode_exact(old, new, workers=WORKERS), hashlib.sha256(old.data).digest()


def delta_tensors(part: FilePart, payload: bytes, start: Start, name: str) -> Iterator[tuple[Tensor, str, bytes]]:
    """(tensor, dtype, own bytes) of a delta part. `name` of the expert is for errors.

    Errors: InputError without a directory to start from; WrongBaseError if it is another one than the part was taken against; FormatError.
    """
    if start.directory is None:
        raise InputError(f"{name} is an exact delta: give the checkpoint that it was taken against, --init DIR")
    old = _words(_start_tensors(part.file, part.layout, start), part.dtypes[0])
    found = hashlib.sha256(old.data).digest()
    if found != part.initial_digest:
        raise WrongBaseError(
            f"--init is not what {name} was packed against: its words have SHA-256 {found.hex()[:16]}, needed is "
            f"{part.initial_digest.hex()[:16]}"
        )
    octets, at = decode_exact(payload, old, workers=WORKERS).data.cast("B"), 0
    for tensor, dtype in zip(part.layout.tensors, part.dtypes, strict=True):
        size = tensor.size * WIDTHS[dtype]
        yield tensor, dtype, bytes(octets[at : at + size])
        at += size


def _earlier(start: Start, file: str, tensor: Stored) -> Stored | None:
    found = start.directory.stored(file, tensor.name, tensor.shape) if start.directory else None
    fits = found is not None and found.dtype == tensor.dtype and tensor.dtype in FLOATS and WIDTHS[tensor.dtype] in WORDS
    return found if fits else None


def _start_tensors(file: str, layout: Layout, start: Start) -> list[Stored]:
    """The start's tensors in layout order. Errors: WrongBaseError if it lacks one."""
    found = list[Stored]()
    for tensor in layout.tensors:
        stored = start.directory.stored(file, tensor.name, tensor.shape) if start.directory else None
        if stored is None:
            raise WrongBaseError(
                f"--init lacks tensor {tensor.name[:80]!a} of shape {tensor.shape}: give the checkpoint before this one"
            )
        found.append(stored)
    return found


def _words(tensors: Sequence[Stored], dtype: str) -> NDArray[np.uint16 | np.uint32]:
    """The bits of tensors of one width, one after the other, as words."""
    kind = WORDS[WIDTHS[dtype]]
    words = np.empty(sum(t.bytes for t in tensors) // np.dtype(kind).itemsize, kind)
    at = 0
    for tensor in tensors:
        piece = np.frombuffer(read_bytes(tensor), kind)
        words[at : at + piece.size] = piece
        at += piece.size
    return words


def _runs(tensors: Sequence[Stored]) -> list[list[Stored]]:
    """Tensors in order, cut so that a run has at most PART_WORDS words or one tensor."""
    runs, left = list[list[Stored]](), 0
    for tensor in tensors:
        if not runs or tensor.size > left:
            runs.append([])
            left = PART_WORDS
        runs[-1].append(tensor)
        left -= tensor.size
    return runs


def _planned(file: str, tensors: Sequence[Stored], how: Treatment) -> PlannedPart:
    layout = layout_of({t.name: t.shape for t in tensors}, [t.name for t in tensors])
    by_name = {t.name: t for t in tensors}
    ordered = [by_name[t.name] for t in layout.tensors]
    return PlannedPart(file, layout, ordered, None, [how] * len(ordered))
