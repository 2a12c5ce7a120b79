"""Notes on a source that is packed, pushed, inspected or merged: what is not carried, and what makes the expert useless.

`read_source` refuses what cannot be an adapter (`header_checks`); nothing is left out without being named there or here.
"""

from collections.abc import Iterable

from compeft_client.checkpoints.safetensors_file import Stored, read_values
from compeft_client.checkpoints.source import Source
from compeft_core.errors import NotFiniteError
from compeft_proto.expert_manifest import ADAPTER, FLOATS

STARTED_AT_ZERO = (".lora_B.weight", ".lora_embedding_A")
"""Endings of what PEFT starts at zero."""

CHANGE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""How values of init_lora_weights begin that subtract the adapter's start from the base model, or quantise it."""


def notes_of(source: Source) -> list[str]:
    """What a publisher wants to know before the expert is packed or merged, one line each; none if all is well. Reads LoRA's B.

    Errors: those of reading values.
    """
    return [*source.notes, *_changed_base(source), *_never_trained(source), *_left_behind(source)]


def _changed_base(source: Source) -> Iterable[str]:
    start = source.fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGE_BASE):
        yield (
            f"warning: init_lora_weights is {start!r}, which changed the base model's weights before training: on the unchanged base this "
            "adapter computes something else. Save it as a plain LoRA first: save_pretrained(path_initial_model_for_weight_conversion=...)"
        )


def untrained(source: Source) -> list[str]:
    """Names of the tensors that PEFT starts at zero and that still are."""
    header = source.files.get(ADAPTER)
    tensors = header.tensors.values() if header else ()
    return [t.name for t in tensors if t.name.endswith(STARTED_AT_ZERO) and is_zero(t)]


def is_zero(tensor: Stored) -> bool:
    """Whether all values of a float tensor are zero; NaN and infinity are not."""
    try:
        return tensor.dtype in FLOATS and not any(piece.any() for piece in read_values(tensor))
    except NotFiniteError:
        return False


def _never_trained(source: Source) -> Iterable[str]:
    header = source.files.get(ADAPTER)
    count = sum(name.endswith(STARTED_AT_ZERO) for name in header.tensors) if header else 0
    names = untrained(source)
    if names and len(names) == count:
        yield f"never trained: all {count} of LoRA's B are zero, so this expert computes what its base model does"
    elif names:
        yield f"never trained: {len(names)} of {count} of LoRA's B are zero, such as {names[0]}; without them the adapter does the same"


def _left_behind(source: Source) -> Iterable[str]:
    if source.beside:
        yield f"left out, copy them yourself if the expert needs them: {', '.join(source.beside)}"
