"""Where an expert's parameters started: zero, a seed, or another directory. A task vector is the distance from there.

A tensor that the start says nothing of begins at zero. For a seed, LoRA's A gets PEFT's bounds, 1 / sqrt(inputs), and everything
else zero; for a directory, whatever tensor has the same file, name and shape.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compeft_client.checkpoints.safetensors_file import PIECE, read_values
from compeft_client.checkpoints.source import Source, read_source
from compeft_core import Layout, Tensor, Vector, seeded_state
from compeft_core.errors import InputError
from compeft_proto.expert_manifest import ADAPTER, FLOATS

SEED_PREFIX = "seed:"


@dataclass(frozen=True, slots=True)
class Start:
    """A seed, or a directory; neither: nothing is known."""

    seed: int | None = None
    directory: Source | None = None

    def knows(self, file: str, name: str, shape: tuple[int, ...]) -> bool:
        """Whether it says where this tensor started."""
        if self.directory:
            found = self.directory.stored(file, name, shape)
            return found is not None and found.dtype in FLOATS
        return self.seed is not None and seed_bound(file, name, shape) > 0

    def pieces(self, file: str, tensor: Tensor) -> Iterator[Vector]:
        """The values that a tensor started from, flat, at most PIECE at a time; none if that is zero."""
        if self.directory and self.knows(file, tensor.name, tensor.shape):
            stored = self.directory.stored(file, tensor.name, tensor.shape)
            yield from read_values(stored) if stored else ()
        elif self.seed is not None and (bound := seed_bound(file, tensor.name, tensor.shape)):
            values = seeded_state(Layout((tensor,)), self.seed, [bound])
            yield from (values[at : at + PIECE] for at in range(0, values.size, PIECE))


def read_start(text: str | None) -> Start:
    """`--init`'s value: a directory or checkpoint, `seed:N`, or nothing. Errors: InputError and what `read_source` raises."""
    if text is None:
        return Start()
    if not text.startswith(SEED_PREFIX):
        return Start(directory=read_source(Path(text)))
    digits = text.removeprefix(SEED_PREFIX)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20 and int(digits) < 2**64):
        raise InputError(f"initial state {text[:40]!r} is not a seed: expected seed:N with a number below 2^64, or a directory")
    return Start(seed=int(digits))


def seed_bound(file: str, name: str, shape: tuple[int, ...]) -> float:
    """PEFT's bound for LoRA's A, 1 / sqrt(inputs): what `kaiming_uniform_(a=sqrt(5))` comes to. Zero for every other tensor."""
    return 1 / math.sqrt(math.prod(shape[1:])) if file == ADAPTER and name.endswith(".lora_A.weight") and 0 not in shape else 0.0


def initial_vector(file: str, layout: Layout, start: Start) -> Vector:
    """The values that a part started from, float32 of shape (layout.size,). Errors: those of reading them."""
    vector = np.zeros(layout.size, np.float32)
    at = 0
    for tensor in layout.tensors:
        place = at
        for piece in start.pieces(file, tensor):
            vector[place : place + piece.size] = piece
            place += piece.size
        at += tensor.size
    return vector


def digest_of(layout: Layout, vector: Vector) -> bytes:
    """The state digest of docs/format.md, without a copy of the vector."""
    digest = hashlib.sha256(layout.digest)
    digest.update(vector.astype("<f4", copy=False).data)
    return digest.digest()
