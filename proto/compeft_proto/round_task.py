"""The task of one round for a client, and its form as plain values, which travel in Flower's ConfigRecord or any string-keyed message."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from compeft_core import Codec, Compression
from compeft_core.errors import FormatError
from compeft_core.privacy.terms import ClientPrivacy
from compeft_proto.convert import codec_of, compression_of
from compeft_proto.name_checks import check_name
from compeft_proto.privacy_terms import privacy_from_text, privacy_to_text

T = TypeVar("T")
Value = int | float | str | bytes
AUTO: Literal["auto"] = "auto"
CodecChoice = Codec | Literal["auto"]
"""A codec, or whichever brings an update to the aggregator sooner over its client's own link."""
RECORD = "compeft"
"""Name of the record that carries a task to a client, and a receipt back."""
NUM_EXAMPLES = "num-examples"
"""The metric that updates are weighted by unless a task names another, as in Flower."""
RESTING = "resting"
"""Name of the record, and of its only value, a list of endings: the tensors that are frozen in this round."""
ORDER = "arrays-order"
"""Name of a task's value: for each array, in the order of the app, its place in the layout."""
DTYPES = "arrays-dtypes"
"""Name of a task's value: for each array, in the order of the app, its NumPy type."""
FLOATS, COUNTS = ("float16", "float32", "float64"), ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
UNCOMPRESSED = "uncompressed-"
"""Before the name of a metric in a receipt: the same of this client's own update, uncompressed."""
TRAINED_FROM = "uncompressed-version"
"""Name of a receipt's value: the version that this update would have led to."""
NOBODY_SAYS = hashlib.sha256(b"").digest()


@dataclass(frozen=True, slots=True)
class Origin:
    """The model that an expert is trained with: the weights digest of the base model (`compeft_client.checkpoints.base_model_digest`), the
    adapter's configuration as
    canonical JSON (see `canonical_json`), the base model's id and revision, and the digests (SHA-256) of the tokenizer and of its chat
    template. By default all are unknown.
    """

    base_model_digest: bytes = NOBODY_SAYS
    adapter_config: bytes = b""
    base_model: str = ""
    base_revision: str = ""
    tokenizer_digest: bytes = b""
    chat_template_digest: bytes = b""

    @property
    def adapter_config_digest(self) -> bytes:
        """SHA-256 (32 bytes) of the adapter's configuration."""
        return hashlib.sha256(self.adapter_config).digest()


def canonical_json(fields: Mapping[str, object]) -> bytes:
    """JSON with sorted keys, no spaces, ASCII only: the same fields give the same bytes."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


@dataclass(frozen=True, slots=True)
class RoundTask:
    """Train `expert` from `version` for one round of a run, compress the result like this and send it by this codec.

    resting: how the names of the tensors end that this round neither trains nor sends (`compeft_core.frozen_tensors`); the density is
    of the
    others. max_payload_bytes: the update takes no more, and the density is then the highest; 0: no limit. weighted_by: name of the
    metric, in the app's reply, that is the update's weight. centred: names of the heads whose common row does not travel
    (`compeft_core.centred_heads`). measure_uncompressed: the client keeps its tuned arrays as they are, and measures them too when it is
    next asked to evaluate. privacy: the terms of a private round, with the clip in force.
    """

    expert: str
    run: str
    round: int
    nonce: bytes
    version: int
    compression: Compression
    resting: tuple[str, ...] = ()
    codec: CodecChoice = "context"
    max_payload_bytes: int = 0
    weighted_by: str = NUM_EXAMPLES
    centred: tuple[str, ...] = ()
    measure_uncompressed: bool = False
    privacy: ClientPrivacy | None = None

    def to_values(self) -> dict[str, Value]:
        """As plain values by name."""
        return {
            "expert": self.expert,
            "run": self.run,
            "round": self.round,
            "nonce": self.nonce,
            "version": self.version,
            "density": self.compression.density,
            "scale": self.compression.scale,
            "factor": self.compression.factor,
            "granularity": self.compression.granularity,
            "resting": ",".join(self.resting),
            "codec": self.codec,
            "max-payload-bytes": self.max_payload_bytes,
            "weighted-by": self.weighted_by,
            "centred": json.dumps(self.centred),
            "measure-uncompressed": self.measure_uncompressed,
            "privacy": privacy_to_text(self.privacy),
        }


def task_from_values(values: Mapping[str, object]) -> RoundTask:
    """Plain values as a task. Errors: FormatError if one is missing or of another type; InputError if out of range."""
    return RoundTask(
        expert=check_name(_get(values, "expert", str), "expert"),
        run=check_name(_get(values, "run", str), "run"),
        round=_get(values, "round", int),
        nonce=_get(values, "nonce", bytes),
        version=_get(values, "version", int),
        compression=compression_of(
            _get(values, "density", float),
            _get(values, "scale", str),
            _get(values, "factor", float),
            _get(values, "granularity", str),
        ),
        resting=tuple(ending for ending in _get(values, "resting", str).split(",") if ending),
        codec=_choice(_get(values, "codec", str)),
        max_payload_bytes=_get(values, "max-payload-bytes", int),
        weighted_by=_get(values, "weighted-by", str),
        centred=_names(values, "centred"),
        measure_uncompressed=_get(values, "measure-uncompressed", bool),
        privacy=privacy_from_text(_get(values, "privacy", str)),
    )


def travels(dtype: str, counts: bool) -> bool:
    """Whether arrays of a NumPy type travel in rounds: floating-point ones, and integers if they are `counts`."""
    return dtype in FLOATS or (counts and dtype in COUNTS)


def numpy_of(array: Any) -> NDArray[Any]:
    """A torch tensor, a Flower array or an ndarray as an ndarray. bfloat16, which NumPy lacks, becomes float32, which is exact."""
    if hasattr(array, "detach"):
        tensor = array.detach().cpu()
        array = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
    return np.asarray(array.numpy() if hasattr(array, "numpy") else array)


def as_type(array: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """A float32 array of a state in the app's own type; counts are rounded to the nearest. Errors: FormatError for another type."""
    if not travels(dtype, counts=True):
        raise FormatError(f"arrays of type {dtype[:20]!r} do not travel, known are {', '.join(FLOATS + COUNTS)}")
    if dtype not in COUNTS:
        return array.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(np.rint(array.astype(np.float64)), limits.min, limits.max)).astype(dtype)


def _names(values: Mapping[str, object], name: str) -> tuple[str, ...]:
    """A JSON list of strings. Errors: FormatError."""
    try:
        found = json.loads(_get(values, name, str))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"invalid {name} in the task: expected a JSON list of names") from error
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise FormatError(f"invalid {name} in the task: expected a JSON list of names")
    return tuple(found)


def _choice(name: str) -> CodecChoice:
    return AUTO if name == AUTO else codec_of(name)


def _get(values: Mapping[str, object], name: str, kind: type[T]) -> T:
    value = values.get(name)
    if not isinstance(value, kind):
        raise FormatError(f"task has {name} of type {type(value).__name__}, expected {kind.__name__}")
    return value
