"""Tensor names as PEFT saves them, from names of raw state dicts: the adapter's name, wrappers of FSDP, DDP and torch.compile removed.

`model.state_dict()` of a PEFT model names LoRA's A `q_proj.lora_A.default.weight`; `save_pretrained` removes `default`, and loading a
file that still has it ignores the tensor. Example: `plain_names(["a.lora_A.default.weight"])` has the value `a.lora_A.weight`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compeft_core.errors import InputError

BARE_END = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "trainable_tokens_delta", "ia3_l")
"""Parameters that are not modules: PEFT saves them without `.weight`."""
MARKS = ("lora_A", "lora_B", "lora_E", "modules_to_save", *BARE_END)
WITH_ADAPTER = re.compile(rf"^(?P<module>.*\.(?:{'|'.join(MARKS)}))\.(?P<adapter>[^.]+)(?P<end>\.weight|\.bias)?$")
"""A tensor of an adapter whose name is still in it. Without `end` only embeddings, magnitudes and token rows are written so."""
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


@dataclass(frozen=True, slots=True)
class PlainNames:
    """`names`: as found -> as PEFT saves it. `adapter`: the name that was inside them, empty if none."""

    names: Mapping[str, str]
    adapter: str


def plain_names(found: Iterable[str]) -> PlainNames:
    """The names as PEFT saves them. Errors: InputError if two adapters are in one file, or two names become one."""
    names: dict[str, str] = {}
    adapters: set[str] = set()
    for name in found:
        short = _unwrapped(name)
        names[name], adapter = without_adapter(short)
        adapters |= {adapter} - {""}
    if len(adapters) > 1:
        listed = ", ".join(sorted(adapters))
        raise InputError(
            f"tensors of {len(adapters)} adapters in one file ({listed}): save each by itself, save_pretrained(selected_adapters=[...])"
        )
    if len(set(names.values())) != len(names):
        twice = next(n for n in names.values() if list(names.values()).count(n) > 1)
        raise InputError(
            f"tensor {twice[:80]!a} is there twice, with and without an adapter's name: save the adapter again, save_pretrained"
        )
    return PlainNames(names, next(iter(adapters), ""))


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix("module.") if name.startswith("module.base_model.") else name


def without_adapter(name: str) -> tuple[str, str]:
    """The name as PEFT saves it, and the adapter's name that was in it; empty if none was."""
    match = WITH_ADAPTER.match(name)
    if match is None or match["adapter"] in ("weight", "bias"):
        return _without_saved(name)
    module, end = match["module"], match["end"] or ""
    mark = module.rpartition(".")[2]
    if mark == "modules_to_save":
        return module.removesuffix(".modules_to_save") + end, match["adapter"]
    return (module if mark in BARE_END else module + end), match["adapter"]


def _without_saved(name: str) -> tuple[str, str]:
    """`classifier.modules_to_save.default.dense.weight` -> `classifier.dense.weight`."""
    before, mark, after = name.partition(".modules_to_save.")
    if not mark:
        return name, ""
    adapter, _, inner = after.partition(".")
    return f"{before}.{inner}", adapter
