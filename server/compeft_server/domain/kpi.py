"""A business metric over time: values that an operator states for an expert, with a goal and a baseline. Frozen values and their checks."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from compeft_core.errors import FormatError, InputError, LimitError

MAX_NAME, MAX_UNIT = 64, 16
MAX_VALUES = 100_000
"""Most values of one file."""


@dataclass(frozen=True, slots=True)
class Kpi:
    """One named series of an expert. goal: what is aimed at; baseline: the value before the expert was in use; None if not stated."""

    expert: str
    name: str
    unit: str = ""
    goal: float | None = None
    baseline: float | None = None


@dataclass(frozen=True, slots=True)
class KpiValue:
    """One value at a time (ms since 1970). Errors: InputError if the value is not finite."""

    at_ms: int
    value: float

    def __post_init__(self) -> None:
        """Check the value."""
        if not math.isfinite(self.value):
            raise InputError(f"invalid value {self.value}: expected a finite number, such as 66.5")


@dataclass(frozen=True, slots=True)
class KpiSeries:
    """A KPI with its values, oldest first."""

    kpi: Kpi
    values: tuple[KpiValue, ...]


def check_kpi(kpi: Kpi) -> Kpi:
    """The KPI, if its words and numbers can be kept. Errors: InputError."""
    for what, words, longest, least in (("--name", kpi.name, MAX_NAME, 1), ("--unit", kpi.unit, MAX_UNIT, 0)):
        if not least <= len(words) <= longest or not words.isprintable():
            raise InputError(
                f"invalid {what} {words[:40]!a}: expected {least} to {longest} printable characters, such as 'tickets solved'"
            )
    for what, number in (("--goal", kpi.goal), ("--baseline", kpi.baseline)):
        if number is not None and not math.isfinite(number):
            raise InputError(f"invalid {what} {number}: expected a finite number, such as 70")
    return kpi


def values_from_csv(rows: Iterable[dict[str, str | None]], moment: Callable[[str], int]) -> list[KpiValue]:
    """The values of rows with the columns `at` and `value`, other columns left alone.

    Errors: FormatError that names the row; LimitError above MAX_VALUES rows.
    """
    found = []
    for number, row in enumerate(islice(rows, MAX_VALUES + 1), start=2):
        if number > MAX_VALUES + 1:
            raise LimitError(f"the file has more than {MAX_VALUES:,} values: split it")
        try:
            found.append(KpiValue(moment(row["at"] or ""), float(row["value"] or "")))
        except KeyError as error:
            raise FormatError(f"the file has no column {error.args[0]!a}: expected at,value in its first line") from error
        except (ValueError, InputError) as error:
            raise FormatError(f"line {number}: {error}") from error
    return found
