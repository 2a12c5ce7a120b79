"""A task survives its trip as plain values, and a broken one is named."""

import pytest

from compeft_core import Compression
from compeft_core.errors import FormatError, InputError
from compeft_proto.round_task import RoundTask, task_from_values

TASK = RoundTask(
    "sentiment",
    "run-1",
    3,
    b"nonce",
    2,
    Compression(0.1, "norm", 1.5, "tensor"),
    (".lora_A.weight", ".bias"),
    centred=("head.weight", "a,b"),
    measure_uncompressed=True,
)


@pytest.mark.parametrize("task", [TASK, RoundTask("a", "b", 0, b"", 0, Compression())])
def test_a_task_comes_out_as_it_went_in(task: RoundTask) -> None:
    assert task_from_values(task.to_values()) == task


@pytest.mark.parametrize("name", list(TASK.to_values()))
def test_a_value_that_is_missing_or_of_another_type_is_named(name: str) -> None:
    for broken in ({k: v for k, v in TASK.to_values().items() if k != name}, TASK.to_values() | {name: None}):
        with pytest.raises(FormatError, match=f"task has {name} of type NoneType"):
            task_from_values(broken)


def test_a_density_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="density is 2"):
        task_from_values(TASK.to_values() | {"density": 2.0})


@pytest.mark.parametrize("text", ["", "head.weight", "{}", "[1]", "[" * 100_000])
def test_names_that_are_not_a_json_list_of_strings_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="invalid centred in the task: expected a JSON list of names"):
        task_from_values(TASK.to_values() | {"centred": text})
