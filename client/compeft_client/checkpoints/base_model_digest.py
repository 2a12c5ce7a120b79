"""The weights digest (`compeft_proto.weights_digest`) of a base model on disk or in memory."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from compeft_client.checkpoints.safetensors_file import Header, Stored, read_header, read_shards
from compeft_client.checkpoints.source import INDEX
from compeft_core.errors import InputError
from compeft_proto.expert_manifest import MODEL
from compeft_proto.weights_digest import digest_of, type_of

if TYPE_CHECKING:
    import torch

READ_BYTES = 4 * 2**20


def weights_digest(path: Path) -> bytes:
    """SHA-256 (32 bytes) of the weights in a .safetensors file, or in a checkpoint's folder, whole or sharded.

    Files are read once as long as they stay unchanged. Errors: InputError if no weights are there; FormatError, LimitError if damaged.
    """
    header = header_of(path)
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
            yield name, type_of(name, str(tensor.dtype)), tuple(tensor.shape), map(_octets, (tensor,))

    return digest_of(tensors())


def _octets(tensor: "torch.Tensor") -> bytes:
    """A tensor's bytes, row by row: one tensor at a time, so that the model is not in memory twice."""
    import torch

    octets: bytes = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return octets


@lru_cache(maxsize=16)
def _digest_of_files(path: Path, _changed: tuple[tuple[Path, int, int], ...]) -> bytes:
    """`_changed` is part of the cache's key: files that changed are read again."""
    return digest_of((t.name, t.dtype, t.shape, _pieces(t)) for t in header_of(path).tensors.values())


def header_of(path: Path) -> Header:
    """The tensors of a .safetensors file, or of a checkpoint's folder, whole or sharded. Errors: InputError without any."""
    if path.is_file():
        return read_shards(path) if path.name == INDEX else read_header(path)
    if (path / MODEL).exists():
        return read_header(path / MODEL)
    if (path / INDEX).exists():
        return read_shards(path / INDEX)
    raise InputError(f"no weights at {path}: expected a .safetensors file, or a folder with {MODEL} or {INDEX}")


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
