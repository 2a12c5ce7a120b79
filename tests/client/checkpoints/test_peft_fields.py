"""The table of PEFT's fields: complete, and asked for every purpose."""

import dataclasses

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from compeft_client.checkpoints.peft_fields import LORA, check_fields, differing_field, is_off, known_fields
from compeft_core.errors import InputError


def plain(**fields: object) -> dict[str, object]:
    return {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q"], **fields}


def test_the_table_has_every_field_of_the_installed_loraconfig_and_its_default() -> None:
    fields = {f.name: f for f in dataclasses.fields(peft.LoraConfig)}
    assert set(fields) == set(LORA)
    fresh = peft.LoraConfig()
    for name, field in LORA.items():
        if name not in ("peft_type", "peft_version", "target_modules", "runtime_config"):
            found = getattr(fresh, name)
            assert found == field.default or (is_off(found) and is_off(field.default)), name


@pytest.mark.parametrize("kind", sorted(k.value for k in PEFT_TYPE_TO_CONFIG_MAPPING))
def test_the_table_has_every_field_of_every_installed_method(kind: str) -> None:
    config = next(c for k, c in PEFT_TYPE_TO_CONFIG_MAPPING.items() if k.value == kind)
    assert {f.name for f in dataclasses.fields(config)} <= known_fields({"peft_type": kind})


@pytest.mark.parametrize("purpose", ["entries", "factors", "pool", "rounds"])
@pytest.mark.parametrize("value", [3, "x", [1], {"a": 1}, True, 0.5])
def test_an_unknown_field_is_refused_by_name(purpose: str, value: object) -> None:
    with pytest.raises(InputError, match=r"a\.expert has the option use_new_thing"):
        check_fields(plain(use_new_thing=value), purpose, "a.expert")  # type: ignore[arg-type]  # parametrized


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_an_unknown_field_that_is_off_is_let_pass(value: object) -> None:
    check_fields(plain(use_new_thing=value), "factors", "a.expert")


@pytest.mark.parametrize(
    ("name", "value", "purposes"),
    [
        ("use_dora", True, ("entries", "factors")),
        ("lora_bias", True, ("entries", "factors", "pool", "rounds")),
        ("use_bdlora", {"nblocks": 2}, ("entries", "factors", "pool", "rounds")),
        ("kasa_config", {"beta": 1}, ("entries", "factors", "pool", "rounds")),
        ("arrow_config", {"top_k": 2}, ("entries", "factors", "pool", "rounds")),
        ("monteclora_config", {"n": 2}, ("entries", "factors", "pool", "rounds")),
        ("bias", "all", ("pool",)),
        ("trainable_token_indices", [1, 2], ("pool",)),
        ("init_lora_weights", "pissa", ("entries", "factors", "pool", "rounds")),
        ("init_lora_weights", "olora", ("entries", "factors", "pool", "rounds")),
    ],
)
def test_an_option_without_a_meaning_for_a_purpose_is_refused_by_name(
    name: str, value: object, purposes: tuple[str, ...]
) -> None:
    for purpose in ("entries", "factors", "pool", "rounds"):
        if purpose in purposes:
            with pytest.raises(InputError, match=name):
                check_fields(plain(**{name: value}), purpose, "a")  # type: ignore[arg-type]  # the four purposes
        else:
            check_fields(plain(**{name: value}), purpose, "a")  # type: ignore[arg-type]  # the four purposes


@pytest.mark.parametrize(
    ("name", "a", "b", "purpose", "differs"),
    [
        ("alora_invocation_tokens", [5, 6], None, "factors", True),
        ("alora_invocation_tokens", [5, 6], [6, 5], "factors", True),
        ("alora_invocation_tokens", [5, 6], [5, 6], "pool", False),
        ("fan_in_fan_out", True, False, "entries", True),
        ("use_qalora", True, None, "factors", True),
        ("layer_replication", [[0, 2]], [[0, 3]], "factors", True),
        ("r", 8, 16, "entries", True),
        ("r", 8, 16, "factors", False),
        ("lora_alpha", 8, 8.0, "entries", False),
        ("lora_dropout", 0.1, 0.2, "entries", False),
        ("target_modules", ["q", "v"], ["v"], "entries", False),
        ("rank_pattern", {}, None, "entries", False),
        ("use_dora", True, False, "pool", True),
        ("base_model_name_or_path", "a", "b", "factors", True),
        ("base_model_name_or_path", "a", "b", "pool", False),
    ],
)
def test_fields_that_must_be_equal_are_found(name: str, a: object, b: object, purpose: str, differs: bool) -> None:
    for first, second in ((a, b), (b, a)):
        found = differing_field(plain(**{name: first}), plain(**{name: second}), purpose)  # type: ignore[arg-type]  # the four purposes
        assert found == (name if differs else "")


def test_every_own_field_of_another_method_must_be_equal() -> None:
    assert differing_field({"peft_type": "LOHA", "alpha": 8}, {"peft_type": "LOHA", "alpha": 16}, "entries") == "alpha"
    assert differing_field({"peft_type": "LOHA", "alpha": 8}, {"peft_type": "IA3"}, "entries") == "peft_type"
