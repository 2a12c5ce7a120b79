"""The numeric core: layouts, compression, the codec and merging. Arrays and bytes in and out; no I/O, clock or log."""

from compeft_core.codec import Codec, Encoded, add_to, decode, encode, parse
from compeft_core.compress import SCALE_RULES, Compression, ScaleRule, Ternary, Update, compress, densify
from compeft_core.errors import CompeftError, FormatError, InputError, LayoutMismatchError, LimitError, NotFiniteError
from compeft_core.initial import seeded_state
from compeft_core.layout import MAX_SIZE, Layout, Tensor, Vector, flatten, layout_of, state_digest, unflatten
from compeft_core.merge import METHODS, merge
from compeft_core.shapes import shapes_of

__all__ = [
    "MAX_SIZE",
    "METHODS",
    "SCALE_RULES",
    "Codec",
    "CompeftError",
    "Compression",
    "Encoded",
    "FormatError",
    "InputError",
    "Layout",
    "LayoutMismatchError",
    "LimitError",
    "NotFiniteError",
    "ScaleRule",
    "Tensor",
    "Ternary",
    "Update",
    "Vector",
    "add_to",
    "compress",
    "decode",
    "densify",
    "encode",
    "flatten",
    "layout_of",
    "merge",
    "parse",
    "seeded_state",
    "shapes_of",
    "state_digest",
    "unflatten",
]
