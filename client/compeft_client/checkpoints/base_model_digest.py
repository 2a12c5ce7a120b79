r"""The weights digest: which base model is this? One SHA-256 over names, types, shapes and bytes of all tensors, however they are stored.

One file, shards or a model in memory: the same tensors give the same digest; metadata, file names and order do not matter.

    digest = SHA-256("compeft weights 1\n" || for each tensor, by the UTF-8 bytes of its name:
             canonical JSON of [name, type, shape] || "\n" || its bytes, little-endian, row by row)
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from compeft_client.checkpoints.safetensors_file import Header, Stored, read_header, read_shards
from compeft_client.checkpoints.source import INDEX
from compeft_core.errors import InputError
from compeft_proto.expert_manifest import MODEL

if TYPE_CHECKING:
    import torch

HEAD = b"compeft weights 1\n"
READ_BYTES = 4 * 2**20
TORCH_TYPES = {
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
Tensors = Iterable[tuple[str, str, tuple[int, ...], Iterable[bytes]]]
"""Name, type by safetensors' word, shape, bytes in pieces."""


def weights_digest(path: Path) -> bytes:
    """SHA-256 (32 bytes) of the weights in a .safetensors file, or in a checkpoint's folder, whole or sharded.

    Files are read once as long as they stay unchanged. Errors: InputError if there are none; FormatError, LimitError for damaged ones.
    """
    header = _header(path)
    files = sorted({tensor.file for tensor in header.tensors.values()})
    try:
        changed = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    return _digest_of_files(path, changed)


def model_weights_digest(model: "torch.nn.Module") -> bytes:
    """SHA-256 (32 bytes) of a model's parameters and persistent buffers as they are in memory. Take it before an adapter is put in.

    A tied parameter counts once, under its first name. It is the files' digest if the model was loaded as it is stored, whole and
    in the stored type. Errors: InputError for a type that safetensors does not have.
    """
    first = {name for name, _ in model.named_parameters()}
    again = {name for name, _ in model.named_parameters(remove_duplicate=False)} - first
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in again}

    def tensors() -> Iterator[tuple[str, str, tuple[int, ...], Iterable[bytes]]]:
        for name, tensor in kept.items():
            kind = TORCH_TYPES.get(str(tensor.dtype).removeprefix("torch."))
            if kind is None:
                raise InputError(f"weight {name!r} is {tensor.dtype}, known are {', '.join(TORCH_TYPES)}")
            yield name, kind, tuple(tensor.shape), map(_octets, (tensor,))

    return digest_of(tensors())


def digest_of(tensors: Tensors) -> bytes:
    """The digest of tensors in any order."""
    found = hashlib.sha256(HEAD)
    for name, kind, shape, pieces in sorted(tensors, key=lambda t: t[0].encode()):
        found.update(json.dumps([name, kind, list(shape)], separators=(",", ":"), ensure_ascii=True).encode() + b"\n")
        for piece in pieces:
            found.update(piece)
    return found.digest()


def _octets(tensor: "torch.Tensor") -> bytes:
    """A tensor's bytes, row by row: one tensor at a time, so that the model is not in memory twice."""
    import torch

    octets: bytes = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return octets


@lru_cache(maxsize=16)
def _digest_of_files(path: Path, _changed: tuple[tuple[Path, int, int], ...]) -> bytes:
    """`_changed` is part of the cache's key: files that changed are read again."""
    return digest_of((t.name, t.dtype, t.shape, _pieces(t)) for t in _header(path).tensors.values())


def _header(path: Path) -> Header:
    if path.is_file():
        return read_shards(path) if path.name == INDEX else read_header(path)
    if (path / MODEL).exists():
        return read_header(path / MODEL)
    if (path / INDEX).exists():
        return read_shards(path / INDEX)
    raise InputError(f"no weights at {path}: needed is a .safetensors file, or a folder with {MODEL} or {INDEX}")


def _pieces(tensor: Stored) -> Iterator[bytes]:
    left = tensor.bytes
    try:
        with tensor.file.open("rb") as stream:
            stream.seek(tensor.start)
            while left:
                piece = stream.read(min(READ_BYTES, left))
                if not piece:
                    raise InputError(f"{tensor.file} changed while it was read")
                yield piece
                left -= len(piece)
    except OSError as error:
        raise InputError(f"cannot read {tensor.file}: {error.strerror}") from error
