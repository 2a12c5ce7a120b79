"""All fields of LoraConfig, what each does to the meaning of an adapter's tensors, and what may be done with it: one table.

A field that the table does not know is refused where adapters are combined or put into a model, unless it is off (null, false, empty):
it may change what tensors mean. A test fails when the installed PEFT has a field that is not here. `merge`, `blend`, ExpertPool and the
rounds ask this table; packing does not combine anything and carries the configuration byte for byte.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from compeft_client.checkpoints.peft_other_types import NEEDED_IN_ROUNDS, NOT_AVERAGED, OTHER_TYPES
from compeft_core.errors import InputError

Rule = Literal["harmless", "same", "supported", "off"]
"""harmless: does not change what tensors mean.   same: must be equal in all adapters (and in the model, for the pool).
supported: may differ, the code at work takes it into account.   off: must have its default value; refused by name otherwise.
"""
Purpose = Literal["entries", "factors", "pool", "rounds", "arrays"]
"""entries: merge entry by entry.   factors: merge products.   pool: put into a loaded model.   rounds: merge updates of one model.
arrays: take A and B, and nothing else, out of a model and put them in.
"""


@dataclass(frozen=True, slots=True)
class Field:
    """A field's default in PEFT, and the rule for each purpose. `why` is said when it is refused."""

    default: object
    entries: Rule
    factors: Rule
    pool: Rule
    rounds: Rule
    why: str = ""
    arrays: Rule = "same"


def _all(rule: Rule, default: object = None, why: str = "") -> Field:
    return Field(default, rule, rule, rule, rule, why, rule)


BASE_STARTS = (
    "it starts from its base model, which it changed: save it as a plain LoRA first (path_initial_model_for_weight_conversion)"
)
DORA = "its directions are divided by norms of the base model, so changes do not add up"
LORA: Mapping[str, Field] = {
    "peft_type": _all("same", "LORA"),
    "task_type": _all("harmless"),
    "auto_mapping": _all("harmless"),
    "peft_version": _all("harmless"),
    "base_model_name_or_path": Field(None, "same", "same", "harmless", "harmless"),
    "revision": _all("harmless"),
    "inference_mode": _all("harmless", False),
    "r": Field(8, "same", "supported", "supported", "same"),
    "lora_alpha": Field(8, "same", "supported", "same", "same"),
    "rank_pattern": Field({}, "same", "supported", "supported", "same"),
    "alpha_pattern": Field({}, "same", "supported", "same", "same"),
    "use_rslora": Field(False, "same", "supported", "same", "same"),
    "target_modules": _all("harmless"),
    "exclude_modules": _all("harmless"),
    "layers_to_transform": _all("harmless"),
    "layers_pattern": _all("harmless"),
    "modules_to_save": Field(None, "harmless", "harmless", "off", "same", "layers saved whole are not switched", "off"),
    "lora_dropout": _all("harmless", 0.0),
    "fan_in_fan_out": _all("same", False),
    "bias": Field("none", "same", "same", "off", "same", "biases of the base model are not switched", "off"),
    "init_lora_weights": Field(True, "supported", "supported", "supported", "supported"),
    "megatron_config": Field(None, "same", "same", "same", "off", "Megatron's parallel layers are not supported", "off"),
    "megatron_core": _all("harmless", "megatron.core"),
    "trainable_token_indices": Field(
        None, "same", "supported", "off", "same", "trained rows of embeddings are not switched", "off"
    ),
    "loftq_config": _all("harmless", {}),
    "eva_config": _all("harmless"),
    "corda_config": _all("harmless"),
    "lora_ga_config": _all("harmless"),
    "velora_config": _all("harmless"),
    "use_dora": Field(
        False,
        "off",
        "off",
        "same",
        "supported",
        DORA,
        "off",
    ),
    "alora_invocation_tokens": Field(None, "same", "same", "same", "same"),
    "use_qalora": Field(False, "same", "same", "same", "off", "A acts on pooled inputs", "off"),
    "qalora_group_size": _all("same", 16),
    "monteclora_config": _all("off", None, "its factors are means of sampled ones"),
    "layer_replication": Field(None, "same", "same", "same", "same", "layers are copies of others", "off"),
    "runtime_config": _all("harmless", {}),
    "lora_bias": _all("off", False, "a bias beside B is scaled like a factor"),
    "target_parameters": Field(
        None, "supported", "supported", "supported", "same", "factors of several experts lie in one tensor", "off"
    ),
    "use_bdlora": _all("off", None, "its factors are block-diagonal"),
    "arrow_config": _all("off", None, "it routes between adapters"),
    "kasa_config": _all("off", None, "it changes the base model's weights"),
    "ensure_weight_tying": _all("same", False),
}
"""The 41 fields of LoraConfig in PEFT 0.21 (those of PeftConfig first)."""
RANDOM_STARTS = (True, False, "gaussian", "orthogonal", None)
"""Values of init_lora_weights that leave the base model as it is. Others (PiSSA, OLoRA, LoftQ, CorDA, EVA, LoRA-GA ...) may change it."""
HARMLESS = {name for name, field in LORA.items() if field.entries == "harmless"}


def check_fields(fields: Mapping[str, object], purpose: Purpose, where: str) -> None:
    """Whether one adapter's configuration can be used so. `where` names it. Errors: InputError, naming the field and the way out."""
    known = known_fields(fields)
    for name, value in sorted(fields.items()):
        if name not in known and not is_off(value):
            raise InputError(
                f"{where} has the option {name}: {value!r}, which this version does not know and which may change what its tensors mean: "
                "upgrade compeft, or remove the option if it does not"
            )
    kind = str(fields.get("peft_type", "LORA"))
    if purpose == "rounds":
        _check_average(kind, fields, where)
    if kind != "LORA":
        return
    for name, field in LORA.items():
        if getattr(field, purpose) == "off" and not _equal(fields.get(name, field.default), field.default):
            raise InputError(f"{where} has {name} {fields[name]!r}, which cannot be combined: {field.why}")
    start = fields.get("init_lora_weights", True)
    if start not in RANDOM_STARTS:
        raise InputError(f"{where} has init_lora_weights {start!r}: {BASE_STARTS}")


def _check_average(kind: str, fields: Mapping[str, object], where: str) -> None:
    """Refuse a method whose arrays cannot be averaged over sites. Errors: InputError, naming it and why."""
    if kind in NOT_AVERAGED:
        raise InputError(f"{where} has peft_type {kind}, which cannot be averaged over sites: {NOT_AVERAGED[kind]}; use LORA")
    name, value, why = NEEDED_IN_ROUNDS.get(kind, ("", None, ""))
    if name and fields.get(name) == value:
        raise InputError(f"{where} has peft_type {kind} and {name} {value!r}, which cannot be averaged over sites: {why}")


def differing_field(a: Mapping[str, object], b: Mapping[str, object], purpose: Purpose) -> str:
    """The first field that must be equal in both configurations and is not; empty if absent."""
    if a.get("peft_type") != b.get("peft_type"):
        return "peft_type"
    for name in sorted(known_fields(a)):
        field = LORA.get(name) if a.get("peft_type", "LORA") == "LORA" or name in HARMLESS else None
        rule = getattr(field, purpose) if field else "same"
        default = field.default if field else None
        if rule in ("same", "off") and not _equal(a.get(name, default), b.get(name, default)):
            return name
    return ""


def known_fields(fields: Mapping[str, object]) -> set[str]:
    """Names of the fields that the table has for this configuration's type; LoRA's if it names none."""
    kind = str(fields.get("peft_type", "LORA"))
    if kind == "LORA":
        return set(LORA)
    own = set(OTHER_TYPES.get(kind, "").split())
    return own | HARMLESS | {"peft_type", "base_model_name_or_path"} | (set(LORA) if kind == "ADALORA" else set())


def is_off(value: object) -> bool:
    """Whether an option's value switches nothing on: null, false, or empty."""
    return value is None or value is False or value in ("", [], {}, ())


def _equal(a: object, b: object) -> bool:
    """Values of one field; null, false and empty are alike."""
    if is_off(a) and is_off(b):
        return True
    return (type(a) is type(b) and a == b) or (isinstance(a, int | float) and isinstance(b, int | float) and a == b)
