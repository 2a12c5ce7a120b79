"""The layout: which tensor lies where in the one flat float32 vector that everything else works on.

Ternary tensors come first, then the dense ones (small tensors that top-k would ruin, such as a classifier head); within each
kind, names are sorted by their UTF-8 bytes. So a vector is two contiguous parts and no kernel needs to know about tensors.
Two vectors may be combined only if the digests of their layouts agree.
"""

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError, LayoutMismatchError, LimitError, NotFiniteError

Kind = Literal["ternary", "dense"]
Vector = NDArray[np.float32]

MAX_SIZE = 2**32 - 1
"""Most parameters in one layout: positions are unsigned 32-bit."""
MAX_TENSORS = 2**18
"""Most tensors in one layout: three pairs of LoRA factors in each of 58 layers of 256 experts are 89,088."""
MAX_NAME_BYTES = 1024
MAX_NAMES_BYTES = 2**25
"""Most UTF-8 bytes of all names of one layout together: 128 a name at MAX_TENSORS names."""
MAX_RANK = 8
DOMAIN = b"compeft.layout.v1\0"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor. `shape` may be () for a scalar; `kind` says how its task vector is coded."""

    name: str
    shape: tuple[int, ...]
    kind: Kind = "ternary"

    @property
    def size(self) -> int:
        """Number of parameters."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """Tensors in canonical order. Build one with `layout_of`; the constructor refuses any other order."""

    tensors: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        if len(self.tensors) > MAX_TENSORS:
            raise LimitError(f"layout has {len(self.tensors)} tensors, the cap is {MAX_TENSORS}")
        for tensor in self.tensors:
            _check(tensor)
        names_bytes = sum(len(t.name.encode()) for t in self.tensors)
        if names_bytes > MAX_NAMES_BYTES:
            raise LimitError(f"layout has names of {names_bytes} bytes in all, the cap is {MAX_NAMES_BYTES}")
        keys = [_order(t) for t in self.tensors]
        if keys != sorted(keys):
            raise InputError("layout is not in canonical order: ternary before dense, then names by UTF-8 bytes")
        if len({t.name for t in self.tensors}) != len(self.tensors):
            raise InputError("layout names a tensor twice")
        if self.size > MAX_SIZE:
            raise LimitError(f"layout has {self.size} parameters, the cap is {MAX_SIZE}")

    @property
    def size(self) -> int:
        """Parameters in all: the length d of the flat vector."""
        return sum(t.size for t in self.tensors)

    @property
    def ternary_size(self) -> int:
        """Parameters in the ternary part, which is the front of the flat vector."""
        return sum(t.size for t in self.tensors if t.kind == "ternary")

    @property
    def dense_size(self) -> int:
        """Parameters in the dense part, which is the back of the flat vector."""
        return self.size - self.ternary_size

    @property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) over kind, name and shape of each tensor in order; see docs/format.md."""
        h = hashlib.sha256(DOMAIN)
        for t in self.tensors:
            name = t.name.encode()
            h.update(bytes([t.kind == "dense", len(t.shape)]))
            h.update(len(name).to_bytes(4, "little") + name)
            for n in t.shape:
                h.update(n.to_bytes(8, "little"))
        return h.digest()


def layout_of(shapes: Mapping[str, tuple[int, ...]], dense: Collection[str] = ()) -> Layout:
    """The layout of tensors with these shapes; names in `dense` are kept dense. Errors: InputError, LimitError."""
    unknown = set(dense) - set(shapes)
    if unknown:
        raise InputError(f"dense names no tensor: {sorted(unknown)[0]!r}")
    tensors = [Tensor(name, tuple(shape), "dense" if name in dense else "ternary") for name, shape in shapes.items()]
    return Layout(tuple(sorted(tensors, key=_order)))


def flatten(layout: Layout, arrays: Mapping[str, NDArray[np.floating]]) -> Vector:
    """Tensors by name -> flat float32 vector of length `layout.size`, in layout order.

    Errors: LayoutMismatchError if a name is missing, extra, or has another shape (nothing is broadcast);
    NotFiniteError if a value is NaN or infinite.
    """
    expected = {t.name for t in layout.tensors}
    for name in sorted(expected ^ set(arrays)):
        raise LayoutMismatchError(f"tensor {name!r} is {'missing' if name in expected else 'not in the layout'}")
    vector = np.empty(layout.size, np.float32)
    start = 0
    for t in layout.tensors:
        array = arrays[t.name]
        if array.shape != t.shape:
            raise LayoutMismatchError(f"tensor {t.name!r} has shape {array.shape}, the layout says {t.shape}")
        part = vector[start : start + t.size]
        part[:] = array.reshape(-1)
        if not np.isfinite(part).all():
            raise NotFiniteError(f"tensor {t.name!r} holds NaN or infinity")
        start += t.size
    return vector


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A state with its name. vector: float32 of shape (layout.size,), not to be written to.   digest: its `state_digest`."""

    vector: Vector
    digest: bytes


def state_of(layout: Layout, vector: Vector) -> State:
    """A vector as a state."""
    return State(vector, state_digest(layout, vector))


def unflatten(layout: Layout, vector: Vector) -> dict[str, Vector]:
    """Flat vector -> tensors by name: views into `vector`, no copy. Errors: LayoutMismatchError on another length."""
    if vector.shape != (layout.size,):
        raise LayoutMismatchError(f"vector has shape {vector.shape}, the layout says ({layout.size},)")
    arrays, start = {}, 0
    for t in layout.tensors:
        arrays[t.name] = vector[start : start + t.size].reshape(t.shape)
        start += t.size
    return arrays


def state_digest(layout: Layout, vector: Vector) -> bytes:
    """SHA-256 (32 bytes) naming a state: the layout digest, then the vector as little-endian float32."""
    digest = hashlib.sha256(layout.digest)
    digest.update(np.ascontiguousarray(vector, "<f4").data)
    return digest.digest()


def _order(tensor: Tensor) -> tuple[bool, bytes]:
    return tensor.kind == "dense", tensor.name.encode()


def _check(tensor: Tensor) -> None:
    if not 0 < len(tensor.name.encode()) <= MAX_NAME_BYTES:
        raise InputError(f"tensor name of {len(tensor.name.encode())} bytes, expected 1 to {MAX_NAME_BYTES}")
    if len(tensor.shape) > MAX_RANK or any(n < 0 for n in tensor.shape):
        raise InputError(f"tensor {tensor.name!r} has shape {tensor.shape}, expected up to {MAX_RANK} sizes >= 0")
    if tensor.kind not in ("ternary", "dense"):
        raise InputError(f"tensor {tensor.name!r} has kind {tensor.kind!r}, expected ternary and dense")
