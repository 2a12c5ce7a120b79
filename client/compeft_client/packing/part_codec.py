"""One part of an expert, coded and decoded: tensors of a source -> payload and what the manifest says of it, and back to values.

Only one flat float32 vector of the part is in memory, and pieces of it: values are read into it and subtracted in place.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compeft_client.checkpoints.initial_values import Start, digest_of, initial_vector
from compeft_client.checkpoints.safetensors_file import PIECE, read_bytes, read_values
from compeft_client.packing.exact_codec import delta_tensors, encode_delta
from compeft_client.packing.plan import PlannedPart
from compeft_client.packing.product_codec import encode, product_tensors, quantise, read_whole, slices_of
from compeft_client.packing.tensor_rules import read_table
from compeft_client.workers import WORKERS
from compeft_core import Codec, Encoded, Tensor, Update, Vector, add_to, compress, encoding_of, layout_of, shapes_of
from compeft_core.errors import InputError
from compeft_core.product import LowRank, ProductEncoded, ProductSettings
from compeft_proto.convert import coding_of, read_payload
from compeft_proto.errors import WrongBaseError
from compeft_proto.expert_file import own_bytes, tables_of
from compeft_proto.expert_manifest import WIDTHS, FilePart
from compeft_proto.packed_manifest import deflate
from compeft_proto.positions_part import columns_of, write_tables
from compeft_proto.quantised_part import values_of, write_entries
from compeft_proto.v1 import expert_pb2 as pb

MAX_DEFLATED = 2**28
"""Exact parts of more bytes are not tried to deflate."""
DEFLATED_FIELD = 8
"""Bytes that the manifest takes to say that a part is deflated, at most."""
Progress = Callable[[int], None]
"""Told how many parameters have just been done."""


@dataclass(frozen=True, slots=True, eq=False)
class CodedPart:
    """A part as planned and as made, and its payload. `cosine`: of the ternary tensors' changes and what was kept of them, else 1."""

    planned: PlannedPart
    part: FilePart
    payload: bytes
    cosine: float = 1.0
    encoded: ProductEncoded | None = None


def silent(_done: int) -> None:
    """Progress that nobody watches."""


def code(planned: PlannedPart, start: Start, codec: Codec, progress: Progress = silent) -> CodedPart:
    """Code one planned part that is not of products. Errors: InputError for a start that is not this expert's; NotFiniteError; those of
    reading.
    """
    if planned.treatments[0] == "quantised":
        return _quantised(planned, progress)
    if planned.treatments[0] == "delta":
        payload, taken_against = encode_delta(planned, start)
        progress(planned.layout.size)
        return CodedPart(planned, replace(_part(planned, payload, digest=taken_against), delta=True), payload)
    if planned.treatments[0] == "positions":
        return _positions(planned, progress)
    if planned.compression is None:
        return _exact(planned, progress)
    vector, digest = task_vector(planned, start, progress)
    update = compress(planned.layout, vector, planned.compression, workers=WORKERS)
    cosine = _cosine(vector[: update.ternary.size], update)
    del vector
    encoded = encoding_of(update, codec=codec, shapes=shapes_of(planned.layout), workers=WORKERS)
    coding = coding_of(encoded, planned.compression)
    part = _part(planned, encoded.blob, coding, start.seed if planned.uses(start) else None, digest)
    if len(encoded.blob) > part.stored_bytes and not digest and part.seed is None:
        return _exact(_all_exact(planned), silent)
    return CodedPart(planned, part, encoded.blob, cosine)


def code_products(
    planned: PlannedPart, products: Sequence[LowRank], settings: ProductSettings, weights: Sequence[float] | None = None
) -> CodedPart:
    """Code a part of products; weights: how much an error in each matters. Errors: LimitError for a budget that is too small."""
    encoded = encode(products, settings, weights)
    slices = slices_of([module for module, _ in planned.modules])
    part = replace(_part(planned, encoded.blob), slices=slices)
    return CodedPart(planned, part, encoded.blob, math.sqrt(encoded.cos2), encoded)


def _quantised(planned: PlannedPart, progress: Progress) -> CodedPart:
    entries, steps = zip(*(quantise(read_whole(t)) for t in planned.tensors), strict=True)
    payload = write_entries(np.concatenate(entries))
    progress(planned.layout.size)
    part = replace(_part(planned, payload), steps=steps)
    return CodedPart(planned, part, payload) if len(payload) < part.stored_bytes else _exact(planned, silent)


def _positions(planned: PlannedPart, progress: Progress) -> CodedPart:
    tables = [read_table(t) for t in planned.tensors]
    columns = [columns_of(table) for table in tables]
    payload = write_tables(tables, columns)
    part, exact = replace(_part(planned, payload), columns=tuple(columns)), _exact(planned, progress)
    return CodedPart(planned, part, payload) if len(payload) < len(exact.payload) else exact


def _exact(planned: PlannedPart, progress: Progress) -> CodedPart:
    """The tensors' own bytes, deflated where that saves some."""
    octets = b"".join(map(read_bytes, planned.tensors))
    progress(planned.layout.size)
    deflated = deflate(octets) if len(octets) <= MAX_DEFLATED else octets
    if len(deflated) + DEFLATED_FIELD < len(octets):
        return CodedPart(planned, replace(_part(planned, deflated), deflated_bytes=len(octets)), deflated)
    return CodedPart(planned, _part(planned, octets), octets)


def _all_exact(planned: PlannedPart) -> PlannedPart:
    """The same tensors, kept as they are: coding them would take more bytes."""
    layout = layout_of({t.name: t.shape for t in planned.tensors}, [t.name for t in planned.tensors])
    by_name = {t.name: t for t in planned.tensors}
    tensors = [by_name[t.name] for t in layout.tensors]
    return PlannedPart(planned.file, layout, tensors, None, ["exact"] * len(tensors))


def task_vector(planned: PlannedPart, start: Start, progress: Progress = silent) -> tuple[Vector, bytes]:
    """Tensors minus where they started, float32 of shape (layout.size,), and the state digest of a directory they started from, or none.

    Errors: InputError if they did not start there; NotFiniteError; those of reading.
    """
    vector = initial_vector(planned.file, planned.layout, start)
    digest = digest_of(planned.layout, vector) if start.directory and planned.uses(start) else b""
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
            f"--init is not where {planned.tensors[0].file} started: it is {math.sqrt(moved / length):.2f} times its own "
            "length away from there, further than from zero; leave --init out if its start is unknown"
        )
    return vector, digest


def decode_part(part: FilePart, payload: bytes, start: Start, name: str) -> Vector:
    """The values of a coded part, float32 of shape (layout.size,): its start plus what was coded. `name` of the expert is for errors.

    Errors: WrongBaseError if `start` is not the one it needs; FormatError; InputError.
    """
    vector = start_vector(part, start, name)
    add_to(read_part(part, payload), vector, workers=WORKERS)
    return vector


def start_vector(part: FilePart, start: Start, name: str) -> Vector:
    """Where a coded part started, float32 of shape (layout.size,). Errors: WrongBaseError if `start` is not it; InputError."""
    vector = initial_vector(part.file, part.layout, start_of(part, start, name))
    if part.initial_digest and digest_of(part.layout, vector) != part.initial_digest:
        raise WrongBaseError(
            f"--init is not what {name} was packed against: it has state {digest_of(part.layout, vector).hex()[:16]}, expected "
            f"{part.initial_digest.hex()[:16]}"
        )
    return vector


def decode_change(part: FilePart, payload: bytes) -> Vector:
    """What was coded, without the start: float32 of shape (layout.size,). Errors: FormatError."""
    vector = np.zeros(part.layout.size, np.float32)
    add_to(read_part(part, payload), vector, workers=WORKERS)
    return vector


def tensors_in(
    part: FilePart, payload: bytes, start: Start, name: str, ranks: Mapping[str, int] | None = None
) -> Iterator[tuple[Tensor, str, Vector | bytes]]:
    """(tensor, dtype, flat float32 values, or its own bytes) of any part. `name` of the expert is for errors; `ranks`: as
    `product_tensors` takes them.

    Errors: those of `decode_part`; FormatError, LimitError.
    """
    if part.is_exact:
        yield from exact_tensors(part, payload)
    elif part.delta:
        yield from delta_tensors(part, payload, start, name)
    elif part.columns:
        for tensor, dtype, octets in zip(part.layout.tensors, part.dtypes, tables_of(part, payload), strict=True):
            yield tensor, dtype, octets
    elif part.slices is not None:
        yield from product_tensors(part, payload, ranks)
    else:
        vector = values_of(payload, part.layout, part.steps) if part.steps else decode_part(part, payload, start, name)
        at = 0
        for tensor, dtype in zip(part.layout.tensors, part.dtypes, strict=True):
            yield tensor, dtype, vector[at : at + tensor.size]
            at += tensor.size


def exact_tensors(part: FilePart, payload: bytes) -> Iterator[tuple[Tensor, str, bytes]]:
    """(tensor, dtype, own bytes) of a part that is not coded. Errors: FormatError if it is deflated and damaged."""
    payload, at = own_bytes(part, payload), 0
    for tensor, dtype in zip(part.layout.tensors, part.dtypes, strict=True):
        size = tensor.size * WIDTHS[dtype]
        yield tensor, dtype, payload[at : at + size]
        at += size


def read_part(part: FilePart, payload: bytes) -> Encoded:
    """The checked encoding of a coded part. Errors: InputError if it is not coded; FormatError, LayoutMismatchError."""
    if part.coding is None:
        raise InputError(f"part of {part.file} is not coded")
    return read_payload(part.coding, payload, part.layout)


def start_of(part: FilePart, given: Start, name: str) -> Start:
    """Where a part starts: as its manifest says, which may need what was given. Errors: InputError."""
    if part.seed is not None:
        return Start(seed=part.seed)
    if not part.initial_digest:
        return Start()
    if given.directory is None:
        raise InputError(f"{name} was packed against a directory of initial values: give the same one, --init DIR")
    return given


def _part(
    planned: PlannedPart, payload: bytes, coding: pb.Coding | None = None, seed: int | None = None, digest: bytes = b""
) -> FilePart:
    dtypes = tuple(t.dtype for t in planned.tensors)
    return FilePart(planned.file, planned.layout, dtypes, len(payload), hashlib.sha256(payload).digest(), coding, seed, digest)


def _cosine(front: Vector, update: Update) -> float:
    """Cosine of the ternary tensors' changes and what was kept of them; 1.0 without any. Computed in pieces to bound memory."""
    ternary = update.ternary
    dot = 0.0
    for at in range(0, ternary.count, PIECE):
        positions = ternary.positions[at : at + PIECE]
        scales = ternary.scales[np.searchsorted(ternary.group_ends, positions.astype(np.int64), side="right")]
        dot += float(np.dot(np.abs(front[positions]), scales))
    squares = float(np.dot(ternary.scales.astype(np.float64) ** 2, ternary.group_counts))
    length = math.sqrt(float(np.dot(front, front)) * squares)
    return dot / length if length else 1.0
