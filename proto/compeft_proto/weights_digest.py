r"""The weights digest: which base model is this? One SHA-256 over names, types, shapes and bytes of all tensors, however they are stored.

One file, shards or a model in memory: the same tensors give the same digest; metadata, file names and order do not matter.

    digest = SHA-256("compeft weights 1\n" || for each tensor, by the UTF-8 bytes of its name:
             canonical JSON of [name, type, shape] || "\n" || its bytes, little-endian, row by row)
"""

import hashlib
import json
from collections.abc import Iterable

from compeft_core.errors import InputError

HEAD = b"compeft weights 1\n"
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


def digest_of(tensors: Tensors) -> bytes:
    """SHA-256 (32 bytes) of tensors in any order."""
    found = hashlib.sha256(HEAD)
    for name, kind, shape, pieces in sorted(tensors, key=lambda t: t[0].encode()):
        found.update(json.dumps([name, kind, list(shape)], separators=(",", ":"), ensure_ascii=True).encode() + b"\n")
        for piece in pieces:
            found.update(piece)
    return found.digest()


def type_of(name: str, dtype: str) -> str:
    """Safetensors' word for a torch type, such as "torch.float32". Errors: InputError for a type that safetensors does not have."""
    kind = TORCH_TYPES.get(dtype.removeprefix("torch."))
    if kind is None:
        raise InputError(f"weight {name!r} is {dtype}, known are {', '.join(TORCH_TYPES)}")
    return kind
