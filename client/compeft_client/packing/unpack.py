"""Get an expert back out of its file: `load_compressed`, `unpack`, `from_compressed`.

    from compeft_client import from_compressed, load_compressed

    loaded = load_compressed("my.expert")                   # .tensors: file -> name -> array; .config: its configuration
    model = from_compressed(base_model, "my.expert")        # a PeftModel

What comes back has the names, types and configuration that went in; the values are where the expert started plus what compression kept
of the way it went. With `rank="own"` LoRA's factors come at the ranks that were kept: see `own_rank`.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from compeft_client.checkpoints.initial_values import Start, read_start
from compeft_client.checkpoints.lora_names import NAMES, stored_name
from compeft_client.checkpoints.safetensors_file import NUMPY, PIECE, from_float32, header_bytes, to_float32
from compeft_client.durable_files import write_durably, written_whole
from compeft_client.packing.expert_file import ExpertFile, open_expert, read_payload_of
from compeft_client.packing.own_rank import OwnRanks, Rank, own_ranks
from compeft_client.packing.part_codec import Progress, silent, tensors_in
from compeft_core import Tensor, Vector
from compeft_core.errors import FormatError, InputError, LimitError, NotFiniteError
from compeft_proto.expert_file import check_payload
from compeft_proto.expert_manifest import ADAPTER, ADAPTER_CONFIG, CARD, FLOATS, WIDTHS
from compeft_proto.keys import PublicKey

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

STATED = "compeft."
"""How keys of metadata begin that are of the expert file, not of the tensors' file that was packed."""
MAX_PARAMETERS = 10**9
"""Most parameters unpacked unless the caller says more: a file of a few kilobytes can stand for gigabytes of zeros."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An expert out of a file: its configuration as bytes, and by file name its tensors: floats as float32, others as they are."""

    config: bytes
    tensors: Mapping[str, Mapping[str, NDArray[np.generic]]] = field(default_factory=dict)


def load_compressed(
    file: Path | str, *, init: str | None = None, key: PublicKey | None = None, max_parameters: int = MAX_PARAMETERS
) -> Loaded:
    """The tensors of an expert file, rounded to the types they were stored as. Errors: those of `unpack`."""
    opened, start = _open_within(file, key, max_parameters), read_start(init)
    return Loaded(opened.manifest.config, {name: load_tensors(opened, name, start) for name in opened.manifest.files})


def load_tensors(opened: ExpertFile, file: str, start: Start) -> dict[str, NDArray[np.generic]]:
    """The tensors of one file of an opened expert, by name. Errors: those of `unpack`."""
    rows = _tensors(opened, file, start)
    return {t.name: _values(dtype, b"".join(pieces)).reshape(t.shape) for t, dtype, pieces in rows}


def unpack(
    file: Path | str,
    directory: Path | str,
    *,
    init: str | None = None,
    key: PublicKey | None = None,
    force: bool = False,
    max_parameters: int = MAX_PARAMETERS,
    rank: Rank = "keep",
    progress: Progress = silent,
) -> ExpertFile:
    """Write an expert file out as the directory it was packed from. The configuration comes last: half a directory does not load.

    rank: `own` writes each LoRA module at the rank that was kept, and the configuration says so: the same products in fewer bytes.

    Errors: InputError if one of its files is there and not `force`; WrongBaseError if `init` is not the directory it was packed
    against; FormatError, LimitError; with a key, UnknownKeyError, SignatureError.
    """
    opened, start, directory = _open_within(file, key, max_parameters), read_start(init), Path(directory)
    manifest = opened.manifest
    own = own_ranks(opened) if rank == "own" else None
    config = own.config if own else manifest.config
    texts = {name: data for name, data in ((CARD, manifest.card), (manifest.config_name, config)) if data}
    for name in [*manifest.files, *texts]:
        if (directory / name).exists() and not force:
            raise InputError(f"{directory / name} exists already: give --force to replace it, or -o for another folder")
    with _made(directory):
        for name in manifest.files:
            with written_whole(directory / name) as stream:
                _write_tensors(stream, opened, name, start, own, progress)
        for name, data in texts.items():
            write_durably(directory / name, data)
    return opened


def check_payloads(opened: ExpertFile) -> None:
    """Whether every payload of an opened file is the one its manifest names, and decodes. Errors: FormatError."""
    for number, part in enumerate(opened.manifest.parts):
        check_payload(part, read_payload_of(opened, number))


def from_compressed(
    base_model: "PreTrainedModel", file: Path | str, *, init: str | None = None, key: PublicKey | None = None
) -> "PeftModel":
    """A PeftModel: `base_model` with the adapter of an expert file on it. Errors: those of `unpack`; InputError for a checkpoint."""
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as folder:
        opened = unpack(file, folder, init=init, key=key)
        if opened.manifest.config_name != ADAPTER_CONFIG:
            raise InputError(f"{file} is a full checkpoint, not an adapter: unpack it and load the folder")
        if not opened.manifest.config:
            raise InputError(f"{file} is a LoRA of a diffusion model: unpack it and load it with diffusers, load_lora_weights")
        model: PeftModel = PeftModel.from_pretrained(base_model, folder)
    return model


def _open_within(file: Path | str, key: PublicKey | None, max_parameters: int) -> ExpertFile:
    opened = open_expert(Path(file), key)
    if opened.manifest.size > max_parameters:
        raise LimitError(
            f"{file} unpacks to {opened.manifest.size:,} parameters, the cap is {max_parameters:,}: --max-parameters raises it"
        )
    return opened


def _tensors(
    opened: ExpertFile, file: str, start: Start, own: OwnRanks | None = None
) -> Iterator[tuple[Tensor, str, Iterator[bytes]]]:
    """(tensor, dtype, its bytes in pieces) of one file, part by part: one part's vector is in memory at a time."""
    for number, part in enumerate(opened.manifest.parts):
        if part.file != file:
            continue
        for tensor, dtype, values in tensors_in(
            part, read_payload_of(opened, number), start, opened.path.name, own.ranks if own else None
        ):
            named = replace(tensor, name=_stored_name(opened, file, tensor.name))
            yield named, dtype, iter([values]) if isinstance(values, bytes) else pieces(named, dtype, values)


def _stored_name(opened: ExpertFile, file: str, name: str) -> str:
    """A tensor's name in the file that was packed: another one only for a LoRA of kohya's or diffusers' names."""
    style = opened.manifest.metadata.get(file, {}).get(NAMES)
    return name if style is None else stored_name(name, style)


def pieces(tensor: Tensor, dtype: str, values: Vector) -> Iterator[bytes]:
    """A tensor's float32 values as the bytes of its type. Errors: NotFiniteError if a value does not fit it."""
    try:
        for at in range(0, values.size, PIECE):
            yield from_float32(dtype, values[at : at + PIECE])
    except NotFiniteError as error:
        raise NotFiniteError(f"tensor {tensor.name!r}: {error}: save the adapter as bfloat16 or float32, then pack it") from error


def _write_tensors(
    stream: BinaryIO, opened: ExpertFile, file: str, start: Start, own: OwnRanks | None, progress: Progress
) -> None:
    """One safetensors file. Parts come one after the other, so each tensor is written where the header says that it goes."""
    parts = [part for part in opened.manifest.parts if part.file == file]
    kinds = [(t, dtype) for part in parts for t, dtype in zip(part.layout.tensors, part.dtypes, strict=True)]
    shapes = own.shapes if own and file == ADAPTER else {}
    rows = [(_stored_name(opened, file, t.name), dtype, shapes.get(t.name, t.shape)) for t, dtype in kinds]
    if len({name for name, _, _ in rows}) != len(rows):
        raise FormatError(f"{opened.path} names two tensors of {file} alike: pack it again")
    metadata = opened.manifest.metadata.get(file, {})
    head, starts = header_bytes(rows, {key: value for key, value in metadata.items() if not key.startswith(STATED)})
    stream.write(head)
    for tensor, dtype, pieces in _tensors(opened, file, start, own):
        stream.seek(starts[tensor.name])
        for piece in pieces:
            stream.write(piece)
            progress(len(piece) // WIDTHS[dtype])


def _values(dtype: str, octets: bytes) -> NDArray[np.generic]:
    """Floats as float32, other types as numpy has them."""
    raw = np.frombuffer(octets, NUMPY[dtype])
    if dtype in FLOATS:
        return to_float32(dtype, raw)
    return raw.astype(np.bool_) if dtype == "BOOL" else raw


@contextmanager
def _made(directory: Path) -> Iterator[None]:
    """The directory is there inside; if it was made here and what is inside fails before it wrote anything, it is removed again."""
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {directory}: {error.strerror}") from error
    try:
        yield
    except BaseException:
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise
