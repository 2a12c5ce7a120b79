"""What lies in a directory that can be packed: an adapter as PEFT saves it, or a full checkpoint. It reads headers, never values.

An adapter is adapter_config.json and adapter_model.safetensors; head.safetensors beside them is a classification head, as
`compeft pull` writes one. A checkpoint is model.safetensors, whole or sharded, or any one .safetensors file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compeft_client.checkpoints.safetensors_file import Header, Stored, read_header, read_shards
from compeft_client.durable_files import read_file
from compeft_core.errors import FormatError, InputError, LimitError
from compeft_proto.expert_file import MAGIC
from compeft_proto.expert_manifest import ADAPTER, ADAPTER_CONFIG, HEAD, MAX_CONFIG_BYTES, MODEL, MODEL_CONFIG

INDEX = "model.safetensors.index.json"
MAX_BASE_MODEL = 256


@dataclass(frozen=True, slots=True)
class Source:
    """Where it was found, its files of tensors by their fixed names, and its configuration: as bytes, and what they say."""

    path: Path
    files: Mapping[str, Header]
    config: bytes = b""
    fields: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_adapter(self) -> bool:
        """Whether it is a PEFT adapter, and not a full checkpoint."""
        return ADAPTER in self.files

    @property
    def size(self) -> int:
        """Parameters in all."""
        return sum(t.size for header in self.files.values() for t in header.tensors.values())

    @property
    def base_model(self) -> str:
        """The base model's name, as the configuration gives it; empty if it gives none that could be one."""
        name = self.fields.get("base_model_name_or_path")
        return name if isinstance(name, str) and name.isprintable() and len(name) <= MAX_BASE_MODEL else ""

    def stored(self, file: str, name: str, shape: tuple[int, ...]) -> Stored | None:
        """The tensor of that name and shape, or None."""
        header = self.files.get(file)
        found = header.tensors.get(name) if header else None
        return found if found and found.shape == shape else None


def read_source(path: Path) -> Source:
    """What lies at `path`. Errors: InputError, naming what is missing; FormatError, LimitError for damaged files."""
    if path.is_file():
        if begins_like_one(path):
            raise InputError(f"{path} is an expert file, needed are weights: `compeft unpack` makes a directory of it")
        return Source(path, {MODEL: read_header(path)})
    if (path / ADAPTER).exists():
        config, fields = _config(path / ADAPTER_CONFIG)
        files = {name: read_header(path / name) for name in (ADAPTER, HEAD) if (path / name).exists()}
        return Source(path, files, config, fields)
    if (path / MODEL).exists() or (path / INDEX).exists():
        config, fields = _config(path / MODEL_CONFIG) if (path / MODEL_CONFIG).exists() else (b"", {})
        return Source(
            path, {MODEL: read_header(path / MODEL) if (path / MODEL).exists() else read_shards(path / INDEX)}, config, fields
        )
    raise InputError(_nothing(path))


def _config(file: Path) -> tuple[bytes, dict[str, object]]:
    data = read_file(file)
    if len(data) > MAX_CONFIG_BYTES:
        raise LimitError(f"{file} has {len(data)} bytes, the cap is {MAX_CONFIG_BYTES}")
    return data, fields_of(data, file)


def fields_of(data: bytes, file: Path) -> dict[str, object]:
    """What a configuration says. Errors: FormatError that names `file`, if it is no JSON object."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file} is not JSON: {error}; save the expert again") from error
    if not isinstance(fields, dict):
        raise FormatError(f"{file} holds a JSON {type(fields).__name__}, needed is an object")
    return fields


def _nothing(path: Path) -> str:
    if not path.exists():
        return f"{path} does not exist"
    if (path / "adapter_model.bin").exists():
        return f"{path} has its weights as adapter_model.bin, a pickle, which is never loaded: save it again as safetensors"
    if inner := sorted(child.parent.name for child in path.glob(f"*/{ADAPTER}")):
        return f"{path} holds adapters in folders of their own: name one of them, such as {path / inner[0]}"
    return f"{path} has neither {ADAPTER} nor {MODEL}: a PEFT directory or a checkpoint is needed"


def begins_like_one(path: Path) -> bool:
    """Whether the first bytes of a file are those of an expert file. Errors: InputError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
