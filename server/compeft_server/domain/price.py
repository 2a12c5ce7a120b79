"""What bytes cost: a price that the operator states, and the money it makes of a size."""

import math
from dataclasses import dataclass

from compeft_core.errors import InputError

GB = 1e9


@dataclass(frozen=True, slots=True)
class Price:
    """What the operator pays for a GB (10^9 bytes) on the wire."""

    per_gb: float
    currency: str

    def of(self, size: float) -> float:
        """Money for this many bytes."""
        return size / GB * self.per_gb


def price_of(per_gb: float | None, currency: str) -> Price | None:
    """The price of these two options, None where none is given. Errors: InputError."""
    if per_gb is None:
        return None
    if not math.isfinite(per_gb) or per_gb < 0:
        raise InputError(f"a price of {per_gb} a GB, it must be a number from 0 on")
    if not 0 < len(currency) <= 8 or not currency.isprintable():
        raise InputError(f"currency {currency[:20]!a}, it must have 1 to 8 characters")
    return Price(per_gb, currency)


@dataclass(frozen=True, slots=True)
class Energy:
    """What the operator says that moving a GB (10^9 bytes) takes: kWh, and g of CO2 for each kWh (None if not stated)."""

    kwh_per_gb: float
    co2_g_per_kwh: float | None = None

    def kwh(self, size: float) -> float:
        """Energy of `size` bytes, in kWh."""
        return size / GB * self.kwh_per_gb

    def co2_g(self, size: float) -> float | None:
        """CO2 of `size` bytes, in g; None without the factor."""
        return None if self.co2_g_per_kwh is None else self.kwh(size) * self.co2_g_per_kwh


def energy_of(kwh_per_gb: float | None, co2_g_per_kwh: float | None) -> Energy | None:
    """The factors of these two options, or None if neither is given. Errors: InputError."""
    for option, value in (("--kwh-per-gb", kwh_per_gb), ("--co2-per-kwh", co2_g_per_kwh)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"invalid {option} {value}: expected a number of 0 or more, such as 0.05")
    if kwh_per_gb is None and co2_g_per_kwh is not None:
        raise InputError("invalid --co2-per-kwh without --kwh-per-gb: expected both, such as --kwh-per-gb 0.05 --co2-per-kwh 380")
    return None if kwh_per_gb is None else Energy(kwh_per_gb, co2_g_per_kwh)
