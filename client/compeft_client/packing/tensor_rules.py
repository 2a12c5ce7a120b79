"""Which tensor is coded how. The rules are few and look at names, shapes, types and configuration; at values
only to keep what bfloat16 cannot hold.

product   LoRA's A and B: what they do, B A, is coded by its singular components (the default); the rows below say what happens else
ternary   a matrix whose start is known (given, or zero as LoRA's B): what changed is compressed to the density asked for
coarse    LoRA's A from a start that nobody knows: a dense random projection, of which one entry in twenty would be no projection
          at all; ternary, but two thirds of the entries and a scale for each tensor, 1.6 bits a parameter
quantised in files with products: matrices that ride along, as integers of about 7 bits times one step a tensor
dense     bfloat16: what rides along (heads, embeddings, modules_to_save), vectors whose start is known, matrices of any other method
positions tables of sorted rows and columns (SHiRA's indices): the gaps between them, about 7 bits each, nothing lost
exact     the tensor's own bytes: vectors and tiny tensors whose start is unknown (norms, biases, IA3, DoRA's magnitudes), which are
          close to something that is not zero, so that bfloat16 could lose what was learned; float16 instead of dense, as bfloat16
          saves no byte there and costs three bits; values that are infinite or too large for bfloat16, such as a mask; and types that
          are not floats
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compeft_client.checkpoints.initial_values import Start
from compeft_client.checkpoints.safetensors_file import NUMPY, Stored, read_bytes, read_values
from compeft_client.checkpoints.source import Source
from compeft_core import Compression
from compeft_core.errors import NotFiniteError
from compeft_proto.expert_manifest import ADAPTER, FLOATS, HEAD, MODEL, TABLE_TYPES
from compeft_proto.positions_part import columns_of

LARGEST_BF16 = 3.3895313892515355e38
"""The largest finite bfloat16; all that is at most so large stays finite when it is rounded."""

Treatment = Literal["product", "ternary", "coarse", "dense", "quantised", "positions", "exact", "delta"]

COARSE = Compression(density=2 / 3, scale="mean_magnitude", granularity="tensor")
"""A uniform A keeps 0.94 of its direction so: two thirds is the best density for a ternary uniform variable."""
TINY = 1024
"""Parameters below which compressing a tensor saves nothing worth a loss."""
FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
ZERO_FACTORS = (".lora_B.weight", ".lora_embedding_A")
"""What PEFT starts at zero in `reset_lora_parameters`; the other two start random."""
RANDOM_STARTS = (True, "gaussian", None)
"""Values of init_lora_weights that start LoRA so. Others (PiSSA, LoftQ, OLoRA ...) start both factors from the base model."""
FROM_ZERO = (".shira_weight", ".fourierft_spectrum", ".waveft_spectrum", ".unilora_theta_d")
"""Vectors of many entries that are changes themselves: unlike norms and biases they are not close to something that is not zero."""
SMALLEST_TABLE = 128
HEADS = ("classifier", "classification_head", "score", "qa_outputs")
EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "word_embeddings")


def treatment_of(source: Source, start: Start, file: str, tensor: Stored) -> Treatment:
    """How one tensor of `source` is coded, by its name and type; `plan` makes a dense one exact that bfloat16 cannot hold."""
    treatment = _by_name(source, start, file, tensor)
    return "exact" if treatment == "dense" and tensor.dtype == "F16" else treatment


def fits_bf16(tensor: Stored) -> bool:
    """Whether every value of a float tensor is finite, and still is when rounded to bfloat16. Errors: those of reading."""
    try:
        return all(float(np.abs(piece).max()) <= LARGEST_BF16 for piece in read_values(tensor))
    except NotFiniteError:
        return False


def is_table(tensor: Stored) -> bool:
    """Whether a tensor of integers lists rows and columns in increasing order, and is large enough to matter. Errors: those of reading."""
    listed = tensor.dtype in TABLE_TYPES and len(tensor.shape) == 2 and tensor.shape[0] == 2 and tensor.size >= SMALLEST_TABLE
    return listed and columns_of(read_table(tensor)) > 0


def read_table(tensor: Stored) -> NDArray[np.int64]:
    """A tensor of integers, int64 in its shape. Errors: those of reading."""
    return np.frombuffer(read_bytes(tensor), NUMPY[tensor.dtype]).astype(np.int64).reshape(tensor.shape)


def _by_name(source: Source, start: Start, file: str, tensor: Stored) -> Treatment:
    known = start.knows(file, tensor.name, tensor.shape)
    if tensor.dtype not in FLOATS:
        return "exact"
    if tensor.name.endswith(FROM_ZERO) and tensor.size >= TINY:
        return "dense"
    if not is_factor(source, file, tensor.name) and is_small(tensor.shape):
        return "dense" if known else "exact"
    if rides_along(source, file, tensor.name):
        return "dense"
    if known or starts_at_zero(source, file, tensor.name):
        return "ternary"
    return "coarse" if _starts_at_random(source, file, tensor.name) else "dense"


def is_factor(source: Source, file: str, name: str) -> bool:
    """Whether it is one of the two factors of a LoRA update."""
    return file == ADAPTER and "LORA" in str(source.fields.get("peft_type")) and name.endswith(FACTORS)


def is_small(shape: tuple[int, ...]) -> bool:
    """Whether a tensor has at most one dimension above 1 (a vector), or fewer than TINY parameters."""
    return sum(size > 1 for size in shape) < 2 or math.prod(shape) < TINY


def rides_along(source: Source, file: str, name: str) -> bool:
    """Whether a tensor belongs to a layer that is saved whole beside the adapter: a head, an embedding, modules_to_save."""
    words = set(name.split("."))
    if file == MODEL:
        return bool(words & set(HEADS))
    saved = source.fields.get("modules_to_save")
    whole = {*HEADS, *EMBEDDINGS, *(saved if isinstance(saved, list) else ())}
    is_lora = source.fields.get("peft_type") == "LORA"
    return file == HEAD or ("lora_" not in name and (is_lora or bool(words & {str(word) for word in whole})))


def starts_at_zero(source: Source, file: str, name: str) -> bool:
    """Whether PEFT starts it at zero, so that its start is known with nothing given."""
    return _is_plain_lora(source, file) and name.endswith(ZERO_FACTORS)


def _starts_at_random(source: Source, file: str, name: str) -> bool:
    return _is_plain_lora(source, file) and name.endswith(FACTORS)


def _is_plain_lora(source: Source, file: str) -> bool:
    fields = source.fields
    return file == ADAPTER and fields.get("peft_type") == "LORA" and fields.get("init_lora_weights") in RANDOM_STARTS
