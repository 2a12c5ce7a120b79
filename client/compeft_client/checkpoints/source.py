"""What lies in a directory that can be packed: an adapter as PEFT saves it, or a full checkpoint. It reads headers, never values.

An adapter is adapter_config.json and adapter_model.safetensors, whole or sharded. Beside them belong to it: head.safetensors (a
classification head, as `compeft pull` writes one), value_head.safetensors (a reward model's), new_embeddings.safetensors (added tokens),
README.md (the model card). What else lies there is named in `Source.beside`. A LoRA file of a diffusion model (kohya's or diffusers'
names, no configuration) is an adapter too: the file, or a folder that holds it. A checkpoint is model.safetensors, whole or sharded, or
any other .safetensors file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from compeft_client.checkpoints.header_checks import check_headers
from compeft_client.checkpoints.lora_names import lora_names, with_plain_names
from compeft_client.checkpoints.safetensors_file import Header, Stored, read_header, read_shards
from compeft_client.checkpoints.tensor_names import plain_names
from compeft_client.durable_files import read_file
from compeft_core.errors import FormatError, InputError, LimitError
from compeft_proto.expert_file import MAGIC
from compeft_proto.expert_manifest import (
    ADAPTER,
    ADAPTER_CONFIG,
    CARD,
    HEAD,
    MAX_CARD_BYTES,
    MAX_CONFIG_BYTES,
    MODEL,
    MODEL_CONFIG,
    NEW_EMBEDDINGS,
    VALUE_HEAD,
)

DIFFUSERS = "pytorch_lora_weights.safetensors"
INDEX_SUFFIX = ".index.json"
INDEX = MODEL + INDEX_SUFFIX
BESIDE = (HEAD, VALUE_HEAD, NEW_EMBEDDINGS)
"""Files of tensors that belong to an adapter."""
BELONGS = ("token", "vocab", "merges", "template", "preprocessor", "processor", "generation_config")
"""Words in the names of other files that an expert may need."""
TRAINER = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
"""What a trainer keeps to go on training; no part of an expert."""
MAX_BASE_MODEL = 256


@dataclass(frozen=True, slots=True)
class Source:
    """Where it was found, its files of tensors by their fixed names, and its configuration: as bytes, and what they say.

    card: README.md as bytes; empty if absent.   beside: names of other files that may belong to it and are not carried.
    notes: what reading it changed, a line each.
    """

    path: Path
    files: Mapping[str, Header]
    config: bytes = b""
    fields: Mapping[str, object] = field(default_factory=dict)
    card: bytes = b""
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
            raise InputError(f"{path} is an expert file, expected weights: `compeft unpack` makes a directory of it")
        return _lora_file(path, path) or Source(path, {MODEL: read_header(path)})
    if _holds(path, ADAPTER) and ((path / ADAPTER_CONFIG).exists() or not (path / ADAPTER).exists()):
        return _adapter(path)
    if _holds(path, MODEL):
        config, fields = _config(path / MODEL_CONFIG) if (path / MODEL_CONFIG).exists() else (b"", {})
        return Source(path, {MODEL: _header(path, MODEL)}, config, fields)
    file = _one_file(path)
    if file and (source := _lora_file(path, file)):
        return source
    if _holds(path, ADAPTER):
        return _adapter(path)
    raise InputError(_nothing(path))


def _one_file(path: Path) -> Path | None:
    """The file of a folder that may be a LoRA without configuration: by its usual name, or the only one."""
    usual = [path / name for name in (ADAPTER, DIFFUSERS) if (path / name).exists()]
    found = usual or (sorted(path.glob("*.safetensors")) if path.is_dir() else [])
    return found[0] if len(found) == 1 or usual else None


def _lora_file(path: Path, file: Path) -> Source | None:
    """A LoRA file of kohya's or diffusers' names; None if it is something else. Errors: InputError and those of reading it."""
    header = read_header(file)
    found = lora_names(header.tensors, file)
    if found is None:
        return None
    files = {ADAPTER: with_plain_names(header, found)}
    check_headers(path, files)
    beside = _beside(path, {file.name}) if path.is_dir() else ()
    note = f"a LoRA of {found.style or 'diffusers'} names without a configuration: unpacking gives {ADAPTER} with the same names"
    return Source(path, files, fields={"peft_type": "LORA"}, beside=beside, notes=(note,))


def _holds(path: Path, name: str) -> bool:
    return (path / name).exists() or (path / f"{name}{INDEX_SUFFIX}").exists()


def _header(path: Path, name: str) -> Header:
    return read_header(path / name) if (path / name).exists() else read_shards(path / f"{name}{INDEX_SUFFIX}")


def _adapter(path: Path) -> Source:
    config, fields = _config(path / ADAPTER_CONFIG)
    header, notes = _plain(_header(path, ADAPTER))
    files = {ADAPTER: header, **{name: read_header(path / name) for name in BESIDE if (path / name).exists()}}
    card = read_file(path / CARD) if (path / CARD).exists() else b""
    beside = _beside(path, {t.file.name for h in files.values() for t in h.tensors.values()})
    if len(card) > MAX_CARD_BYTES:
        card, beside = b"", tuple(sorted([*beside, CARD]))
    source = Source(path, files, config, fields, card, beside, notes)
    check_headers(path, files)
    return source


def _plain(header: Header) -> tuple[Header, tuple[str, ...]]:
    """A header with names as PEFT saves them, and what was said about it."""
    found = plain_names(header.tensors)
    if all(name == plain for name, plain in found.names.items()):
        return header, ()
    tensors = {found.names[t.name]: replace(t, name=found.names[t.name]) for t in header.tensors.values()}
    what = f"the adapter's name {found.adapter!r}" if found.adapter else "names of wrappers"
    return Header(tensors, header.metadata), (
        f"tensor names held {what}, which PEFT does not load: removed, as save_pretrained does",
    )


def _beside(path: Path, used: set[str]) -> tuple[str, ...]:
    """Other files of weights, and those whose names say that they prepare or read the model's text."""
    names = [child.name for child in path.iterdir() if child.is_file()]
    weights = [
        n for n in names if n.endswith((".safetensors", ".bin", ".pt", ".pth")) and n not in used and not n.startswith(TRAINER)
    ]
    texts = [n for n in names if not n.startswith(".") and any(word in n for word in BELONGS) and n not in weights]
    return tuple(sorted([*weights, *texts]))


def _config(file: Path) -> tuple[bytes, dict[str, object]]:
    data = read_file(file)
    if len(data) > MAX_CONFIG_BYTES:
        raise LimitError(f"{file} has {len(data)} bytes, the cap is {MAX_CONFIG_BYTES}")
    return data, fields_of(data, file)


def fields_of(data: bytes, file: Path) -> dict[str, object]:
    """What a configuration says. Errors: FormatError that names `file`, if it is not a JSON object."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file} is not JSON: {error}; save the expert again") from error
    if not isinstance(fields, dict):
        raise FormatError(f"{file} holds a JSON {type(fields).__name__}, expected an object")
    return fields


def _nothing(path: Path) -> str:
    if not path.exists():
        return f"{path} does not exist"
    if any((path / f"{stem}.bin").exists() for stem in ("adapter_model", "pytorch_lora_weights")):
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
