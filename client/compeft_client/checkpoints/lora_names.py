"""LoRA files of diffusion models: kohya's and diffusers' tensor names as PEFT's names for factors, and back.

    lora_unet_down_0_attn.lora_down.weight          -> lora_unet_down_0_attn.lora_A.weight             (kohya)
    unet.down.0.attn.to_q.lora.down.weight          -> unet.down.0.attn.to_q.lora.lora_A.weight        (diffusers)
    unet.down.0.attn.processor.to_q_lora.up.weight  -> unet.down.0.attn.processor.to_q_lora.lora_B.weight
    unet.down.0.attn.to_q.lora_A.weight             -> itself                                          (diffusers since 0.22)

Other tensors (`.alpha`, `.dora_scale`) keep their names. A module with `.lora_mid` (LoCon's Tucker form) is not a product of two
factors: its tensors keep their names too and are coded each by itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from compeft_client.checkpoints.safetensors_file import Header
from compeft_core.errors import InputError

NAMES = "compeft.names"
"""Key of a file's metadata in an expert file: KOHYA where factors are to be written by kohya's names."""
KOHYA = "kohya"
A, B, MIDDLE = ".lora_A.weight", ".lora_B.weight", ".lora_mid.weight"
KOHYA_ENDS = {".lora_down.weight": A, ".lora_up.weight": B}
DOWN_ENDS = {".down.weight": A, ".up.weight": B}
MARKS = (".lora", "_lora", ".lora_linear_layer")
"""What diffusers puts before `.down.weight` and `.up.weight`."""
OTHER_METHODS = ("hada_w1", "lokr_w1", "oft_blocks", "oft_diag", "ia3_layer", "glora_")
"""Words in the tensor names of LyCORIS's other methods."""
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class FoundNames:
    """`plain`: name in the file -> name with PEFT's endings. `style`: KOHYA, or empty if diffusers' or PEFT's own."""

    plain: Mapping[str, str]
    style: str


def lora_names(found: Iterable[str], file: Path) -> FoundNames | None:
    """The names of a LoRA file without a configuration; None if it holds no LoRA.

    Errors: InputError for another method of LyCORIS, for PEFT's own file without its folder, and for names that mix styles.
    """
    names = list(found)
    whole = {name.removesuffix(MIDDLE) for name in names if name.endswith(MIDDLE)}
    plain = {name: _plain(name, whole) for name in names}
    style = KOHYA if any(name.endswith(tuple(KOHYA_ENDS)) for name in names) else ""
    if not any(name.endswith((A, B)) for name in plain.values()) and not whole:
        _check_method(names, file)
        return None
    if any(name.startswith(PEFT_PREFIX) for name in names):
        raise InputError(f"{file} holds an adapter of PEFT without adapter_config.json: name the folder that has both")
    for name, short in plain.items():
        if stored_name(short, style) != name:
            raise InputError(
                f"{file} mixes kohya's and other names for LoRA, such as {name[:80]!a}: convert it to one of them first"
            )
    return FoundNames(plain, style)


def with_plain_names(header: Header, found: FoundNames) -> Header:
    """The header of a LoRA file by the names that `lora_names` gave; its metadata say how to write them again."""
    tensors = {found.plain[t.name]: replace(t, name=found.plain[t.name]) for t in header.tensors.values()}
    metadata = {key: value for key, value in header.metadata.items() if key != NAMES}
    return Header(tensors, metadata | ({NAMES: found.style} if found.style else {NAMES: "diffusers"}))


def stored_name(plain: str, style: str) -> str:
    """The name that a tensor had in its file."""
    for end, word in ((A, "down"), (B, "up")):
        module = plain.removesuffix(end)
        if plain.endswith(end) and module.endswith(MARKS):
            return f"{module}.{word}.weight"
        if plain.endswith(end) and style == KOHYA:
            return f"{module}.lora_{word}.weight"
    return plain


def alpha_names(module: str) -> tuple[str, ...]:
    """Names under which a file may hold the alpha of a module."""
    mark = next((mark for mark in sorted(MARKS, key=len, reverse=True) if module.endswith(mark)), "")
    return tuple(dict.fromkeys((f"{module}.alpha", f"{module.removesuffix(mark)}.alpha")))


def _plain(name: str, whole: Iterable[str]) -> str:
    for end, ours in KOHYA_ENDS.items():
        if name.endswith(end):
            module = name.removesuffix(end)
            return name if module in whole else module + ours
    for end, ours in DOWN_ENDS.items():
        if name.endswith(end) and name.removesuffix(end).endswith(MARKS):
            return name.removesuffix(end) + ours
    return name


def _check_method(names: Iterable[str], file: Path) -> None:
    for name in names:
        if word := next((word for word in OTHER_METHODS if word in name), ""):
            raise InputError(
                f"{file} is a LyCORIS file of another method than LoRA ({word} in {name[:60]!a}), which is not read: merge it into its "
                "model and extract a LoRA, or train with PEFT's LoHaConfig, LoKrConfig or OFTConfig"
            )
