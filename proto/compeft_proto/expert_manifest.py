"""The manifest of an expert file: its values, and the checks that a message must pass to become them.

Nothing of it becomes a path: files of tensors are numbers, and `FILES` has their names.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compeft_core import MAX_SIZE, Layout
from compeft_core.errors import FormatError, LimitError
from compeft_proto.chunk_refs import check_digest
from compeft_proto.convert import layout_from_proto, layout_to_proto
from compeft_proto.lora_modules import LoraModule
from compeft_proto.positions_part import MAX_COLUMNS
from compeft_proto.product_part import modules_in
from compeft_proto.v1 import expert_pb2 as pb

ADAPTER = "adapter_model.safetensors"
HEAD = "head.safetensors"
MODEL = "model.safetensors"
VALUE_HEAD = "value_head.safetensors"
NEW_EMBEDDINGS = "new_embeddings.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
CARD = "README.md"
MAX_CONFIG_BYTES = 2**20
MAX_CARD_BYTES = 2**17
WIDTHS: dict[str, int] = {
    "F32": 4,
    "BF16": 2,
    "F16": 2,
    "F64": 8,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "C64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
}
"""The types of tensors, by safetensors' names, and the bytes of one parameter."""
FLOATS = ("F32", "BF16", "F16", "F64")
TABLE_TYPES = ("I32", "I64")
"""Of tables of positions."""
"""Those that can be compressed. F64 goes through float32."""
MAX_PARTS = 256
MAX_TEXT_BYTES = 1024
NUMBERS: dict[str, pb.TensorFile.ValueType] = {
    ADAPTER: pb.TENSOR_FILE_ADAPTER,
    HEAD: pb.TENSOR_FILE_HEAD,
    MODEL: pb.TENSOR_FILE_MODEL,
    VALUE_HEAD: pb.TENSOR_FILE_VALUE_HEAD,
    NEW_EMBEDDINGS: pb.TENSOR_FILE_NEW_EMBEDDINGS,
}
FILES: dict[int, str] = {number: name for name, number in NUMBERS.items()}
DTYPE_NUMBERS = {name.removeprefix("DTYPE_"): number for name, number in pb.Dtype.items() if number}
DTYPES: dict[int, str] = {number: name for name, number in DTYPE_NUMBERS.items()}


@dataclass(frozen=True, slots=True)
class FilePart:
    """Tensors of one file, coded alike, in layout order: ternary (`coding`), as products (`slices`), as integers (`steps`), as tables of
    positions (`columns`), as an exact delta of words (`delta`), or by their own bytes.

    dtypes: what each was stored as.   coding: absent if the payload is the tensors' own bytes.
    seed, initial_digest: what the decoded vector is added to; neither: zero. Of a delta, the SHA-256 of the words it is taken against.
    """

    file: str
    layout: Layout
    dtypes: tuple[str, ...]
    payload_bytes: int
    payload_sha256: bytes
    coding: pb.Coding | None
    seed: int | None = None
    initial_digest: bytes = b""
    slices: tuple[int, ...] | None = None
    steps: tuple[float, ...] = ()
    deflated_bytes: int = 0
    delta: bool = False
    columns: tuple[int, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether the payload is the tensors' own bytes, deflated or not."""
        ways = (self.slices is not None, len(self.steps) > 0, self.delta, len(self.columns) > 0)
        return self.coding is None and not any(ways)

    @property
    def modules(self) -> list[LoraModule]:
        """The modules of a product part; none of another."""
        return modules_in(self.layout, self.slices) if self.slices is not None else []

    @property
    def stored_bytes(self) -> int:
        """Bytes of the tensors as they were stored."""
        return sum(t.size * WIDTHS[dtype] for t, dtype in zip(self.layout.tensors, self.dtypes, strict=True))


@dataclass(frozen=True, slots=True)
class Manifest:
    """A file's manifest. `metadata` by file name; `config` is empty if a checkpoint had none, `card` if there was no README."""

    tool: str
    base_model: str
    config: bytes
    parts: Sequence[FilePart]
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    card: bytes = b""

    @property
    def files(self) -> list[str]:
        """Names of the files of tensors, in the order of their first part."""
        return list(dict.fromkeys(part.file for part in self.parts))

    @property
    def config_name(self) -> str:
        """The file that `config` came from."""
        return MODEL_CONFIG if MODEL in self.files else ADAPTER_CONFIG

    @property
    def size(self) -> int:
        """Parameters in all."""
        return sum(part.layout.size for part in self.parts)


def manifest_to_proto(manifest: Manifest) -> pb.ExpertManifest:
    """A manifest as a message."""
    return pb.ExpertManifest(
        tool=manifest.tool,
        base_model=manifest.base_model,
        config=manifest.config,
        metadata=[
            pb.FileMetadata(file=NUMBERS[file], entries=[pb.MetadataEntry(key=k, value=v) for k, v in sorted(entries.items())])
            for file, entries in manifest.metadata.items()
            if entries
        ],
        parts=[_part_to_proto(part) for part in manifest.parts],
        card=manifest.card,
    )


def _part_to_proto(part: FilePart) -> pb.Part:
    dtypes = part.dtypes[:1] if len(set(part.dtypes)) == 1 else part.dtypes
    message = pb.Part(
        file=NUMBERS[part.file],
        layout=layout_to_proto(part.layout),
        dtypes=[DTYPE_NUMBERS[name] for name in dtypes],
        payload=pb.ChunkRef(sha256=part.payload_sha256, size=part.payload_bytes),
        coding=part.coding,
    )
    if part.seed is not None:
        message.seed = part.seed
    elif part.initial_digest:
        message.initial_digest = part.initial_digest
    if part.slices is not None:
        message.product.CopyFrom(pb.Product(slices=part.slices))
    if part.steps:
        message.quantised.CopyFrom(pb.Quantised(steps=part.steps))
    message.deflated_bytes = part.deflated_bytes
    message.delta = part.delta
    message.columns.extend(part.columns)
    return message


def manifest_from_proto(message: pb.ExpertManifest) -> Manifest:
    """A message as a manifest. Errors: FormatError if it breaks a rule of docs/expert-file.md, LimitError."""
    for what, text in (("tool", message.tool), ("base model", message.base_model)):
        if len(text.encode()) > MAX_TEXT_BYTES or not text.isprintable():
            raise FormatError(f"manifest names a {what} of {len(text)} characters, or not all are printable")
    if len(message.config) > MAX_CONFIG_BYTES:
        raise LimitError(f"manifest has a configuration of {len(message.config)} bytes, the cap is {MAX_CONFIG_BYTES}")
    if len(message.card) > MAX_CARD_BYTES:
        raise LimitError(f"manifest has a model card of {len(message.card)} bytes, the cap is {MAX_CARD_BYTES}")
    if not 0 < len(message.parts) <= MAX_PARTS:
        raise FormatError(f"manifest has {len(message.parts)} parts, expected 1 to {MAX_PARTS}")
    parts = [_part_from_proto(part) for part in message.parts]
    names = [(part.file, tensor.name) for part in parts for tensor in part.layout.tensors]
    if len(set(names)) != len(names):
        raise FormatError("manifest names a tensor twice in one file")
    files = {part.file for part in parts}
    if MODEL in files and len(files) > 1:
        raise FormatError("manifest is of a full checkpoint and of an adapter at once")
    metadata = {_file_name(m.file): {e.key: e.value for e in m.entries} for m in message.metadata}
    entries = sum(len(m.entries) for m in message.metadata)
    once = len(metadata) == len(message.metadata) and entries == sum(map(len, metadata.values()))
    if not once or not set(metadata) <= files:
        raise FormatError("manifest has metadata twice, or of a file that it does not have")
    return Manifest(message.tool, message.base_model, message.config, parts, metadata, message.card)


def _part_from_proto(message: pb.Part) -> FilePart:
    layout = layout_from_proto(message.layout)
    coding = message.coding if message.HasField("coding") else None
    initial = message.WhichOneof("initial")
    part = FilePart(
        file=_file_name(message.file),
        layout=layout,
        dtypes=_dtypes(message, len(layout.tensors)),
        payload_bytes=message.payload.size,
        payload_sha256=check_digest(message.payload.sha256, "payload"),
        coding=coding,
        seed=message.seed if initial == "seed" else None,
        initial_digest=check_digest(message.initial_digest, "initial state") if initial == "initial_digest" else b"",
        slices=tuple(message.product.slices) if message.HasField("product") else None,
        steps=tuple(message.quantised.steps) if message.HasField("quantised") else (),
        deflated_bytes=message.deflated_bytes,
        delta=message.delta,
        columns=tuple(message.columns),
    )
    if part.payload_bytes > MAX_SIZE:
        raise LimitError(f"manifest names a payload of {part.payload_bytes} bytes, the cap is {MAX_SIZE}")
    _check_way(message, part)
    return part


def _check_way(message: pb.Part, part: FilePart) -> None:
    """Whether the part is coded in one way, and has what that way needs. Errors: FormatError, LimitError."""
    ways = [
        message.HasField("coding"),
        message.HasField("product"),
        message.HasField("quantised"),
        message.deflated_bytes > 0,
        message.delta,
        len(part.columns) > 0,
    ]
    if sum(ways) > 1 or (part.coding is None and not part.delta and message.WhichOneof("initial")):
        raise FormatError("manifest has a part that is coded in two ways, or starts somewhere without a coding")
    if part.is_exact:
        said = part.deflated_bytes or part.payload_bytes
        if said != part.stored_bytes or part.layout.ternary_size or (part.deflated_bytes and part.payload_bytes >= said):
            raise FormatError(f"manifest names {said} bytes for {part.stored_bytes} bytes of uncoded tensors")
    elif part.columns:
        _check_tables(part)
    elif not set(part.dtypes) <= set(FLOATS):
        raise FormatError("manifest has a coded tensor whose type is not a float")
    if part.delta and (not part.initial_digest or part.layout.ternary_size or len({WIDTHS[d] for d in part.dtypes}) != 1):
        raise FormatError("manifest has a delta without the digest of its start, or of tensors of two widths")
    if part.slices is not None and (part.layout.dense_size or not part.modules):
        raise FormatError("manifest has a product part without a product, or with dense tensors")
    if part.steps or message.HasField("quantised"):
        finite = all(math.isfinite(step) and step >= 0 for step in part.steps)
        if len(part.steps) != len(part.layout.tensors) or not finite or part.layout.ternary_size:
            raise FormatError(
                f"manifest has {len(part.steps)} steps for {len(part.layout.tensors)} quantised tensors, or an invalid one"
            )


def _check_tables(part: FilePart) -> None:
    """Errors: FormatError if a tensor is not a table of positions, or its columns are missing or too many for its type."""
    fit = all(len(t.shape) == 2 and t.shape[0] == 2 and t.shape[1] > 0 and t.kind == "dense" for t in part.layout.tensors)
    in_range = len(part.columns) == len(part.layout.tensors) and all(1 <= c <= MAX_COLUMNS for c in part.columns)
    if not fit or not in_range or not set(part.dtypes) <= set(TABLE_TYPES):
        raise FormatError(
            f"manifest has columns {list(part.columns)[:4]} for {len(part.layout.tensors)} tensors, not all tables of positions "
            f"(shape (2, k), {' or '.join(TABLE_TYPES)})"
        )


def _dtypes(message: pb.Part, count: int) -> tuple[str, ...]:
    numbers = list(message.dtypes)
    if not set(numbers) <= set(DTYPES):
        raise FormatError(f"manifest has a tensor of type {max(numbers)}, known are 1 to {max(DTYPES)}")
    if len(numbers) == 1:
        return (DTYPES[numbers[0]],) * count
    if len(numbers) != count or len(set(numbers)) < 2:
        raise FormatError(f"manifest has {len(numbers)} types for {count} tensors")
    return tuple(DTYPES[number] for number in numbers)


def _file_name(number: int) -> str:
    if number not in FILES:
        raise FormatError(f"invalid file number {number} in the manifest: expected 1 to {max(FILES)}")
    return FILES[number]
