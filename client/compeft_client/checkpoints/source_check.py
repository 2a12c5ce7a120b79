"""Notes on a source that is packed, pushed, inspected or merged: what is not carried, and what makes the expert useless.

`read_source` refuses what cannot be an adapter (`header_checks`); nothing is left out without being named there or here.
"""

import re
from collections.abc import Iterable, Mapping

from compeft_client.checkpoints.lora_modules import PAIRS, PREFIX, modules_of, rank_of
from compeft_client.checkpoints.safetensors_file import Stored, read_values
from compeft_client.checkpoints.source import Source
from compeft_core.errors import NotFiniteError
from compeft_proto.expert_manifest import ADAPTER, FLOATS

STARTED_AT_ZERO = (".lora_B.weight", ".lora_embedding_A")
"""Endings of what PEFT starts at zero."""

FACTOR_WORD = re.compile(r"\.lora_(embedding_)?[AB]\b")
LOADED_ENDS = (*PAIRS, *PAIRS.values(), ".lora_B.bias")
CHANGE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""How values of init_lora_weights begin that subtract the adapter's start from the base model, or quantise it."""


def notes_of(source: Source) -> list[str]:
    """What a publisher wants to know before the expert is packed or merged, one line each; none if all is well. Reads LoRA's B.

    Errors: those of reading values.
    """
    return [
        *source.notes,
        *_changed_base(source),
        *_not_loadable(source),
        *_never_trained(source),
        *_left_behind(source),
    ]


def _changed_base(source: Source) -> Iterable[str]:
    start = source.fields.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGE_BASE):
        yield (
            f"warning: init_lora_weights is {start!r}, which changed the base model's weights before training: on the unchanged base this "
            "adapter computes something else. Save it as a plain LoRA first: save_pretrained(path_initial_model_for_weight_conversion=...)"
        )


def _not_loadable(source: Source) -> Iterable[str]:
    """Factors that PEFT drops or refuses: half a pair, two that do not fit, a rank that is not the configuration's, an unknown name."""
    header = source.files.get(ADAPTER)
    if header is None or source.fields.get("peft_type") != "LORA":
        return
    shapes = {name: t.shape for name, t in header.tensors.items()}
    whole = {name for module in modules_of(shapes, source.fields) for name in (module.a, module.b)}
    broken = [(a, b) for a, b in _expected_pairs(shapes) if not {a, b} <= whole]
    more = f" ({len(broken)} modules are like that)" if len(broken) > 1 else ""
    for a, b in broken[:1]:
        if a in shapes and b in shapes:
            sizes = f"{a} {list(shapes[a])} and {b} {list(shapes[b])}"
            yield f"warning: {sizes} are factors of different ranks: PEFT does not load them{more}"
        else:
            there, missing = (a, b) if a in shapes else (b, a)
            yield f"warning: {there} is there without {missing}: alone it computes nothing{more}"
    unknown = sorted(name for name in shapes if FACTOR_WORD.search(name) and not name.endswith(LOADED_ENDS))
    if unknown:
        yield f"warning: {len(unknown)} tensors have names that PEFT does not load, such as {unknown[0]!a}: save it by save_pretrained"
    yield from _other_ranks(source, shapes)


def _expected_pairs(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    """(A's name, B's name) of every module that has one of both."""
    found = []
    for a, b in PAIRS.items():
        names = {n.removesuffix(a) for n in shapes if n.endswith(a)} | {n.removesuffix(b) for n in shapes if n.endswith(b)}
        found += [(name + a, name + b) for name in sorted(names)]
    return found


def _other_ranks(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> Iterable[str]:
    if not source.config or source.fields.get("target_parameters"):
        return
    for module in modules_of(shapes, source.fields):
        rank = rank_of(source.fields, module.name.removeprefix(PREFIX))
        if rank and rank != module.rank:
            yield (
                f"warning: {module.name} has rank {module.rank}, the configuration says {rank}: PEFT does not load it so; correct r or "
                "rank_pattern"
            )
            return


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
