"""The numeric core: layouts, compression, the codec and merging. Arrays and bytes in and out; no I/O, clock or log."""

from compeft_core.compress import SCALE_RULES, Compression, ScaleRule, Ternary, Update, compress, densify
from compeft_core.errors import CompeftError, FormatError, InputError, LayoutMismatchError, LimitError, NotFiniteError
from compeft_core.format.encoding import Codec, Contents, Encoded, add_to, check, decode, encode, encoding_of, parse
from compeft_core.format.matrix_shapes import shapes_of
from compeft_core.layout import MAX_SIZE, Layout, State, Tensor, Vector, flatten, layout_of, state_digest, state_of, unflatten
from compeft_core.merging.inputs import MergeParameters
from compeft_core.merging.methods import METHODS, Merged, check_parameters, choose_and_merge, merge
from compeft_core.merging.task_masks import Specialised, elect_mask_rescale
from compeft_core.seeded_state import seeded_state

__all__ = [
    "MAX_SIZE",
    "METHODS",
    "SCALE_RULES",
    "Codec",
    "CompeftError",
    "Compression",
    "Contents",
    "Encoded",
    "FormatError",
    "InputError",
    "Layout",
    "LayoutMismatchError",
    "LimitError",
    "MergeParameters",
    "Merged",
    "NotFiniteError",
    "ScaleRule",
    "Specialised",
    "State",
    "Tensor",
    "Ternary",
    "Update",
    "Vector",
    "add_to",
    "check",
    "check_parameters",
    "choose_and_merge",
    "compress",
    "decode",
    "densify",
    "elect_mask_rescale",
    "encode",
    "encoding_of",
    "flatten",
    "layout_of",
    "merge",
    "parse",
    "seeded_state",
    "shapes_of",
    "state_digest",
    "state_of",
    "unflatten",
]
