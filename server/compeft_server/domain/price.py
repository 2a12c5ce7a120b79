"""What bytes cost: a price and tariffs that the operator states, and the money that they make of a size."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from compeft_core.errors import InputError

GB = 1e9


MAX_LABEL = 64


@dataclass(frozen=True, slots=True)
class Label:
    """Who pays for a member, and the link that it is on, which has a tariff of its own; empty if nobody says."""

    tenant: str = ""
    link: str = ""


def check_label(label: Label) -> Label:
    """The label, if it can be kept. Errors: InputError."""
    for option, words in (("--tenant", label.tenant), ("--link", label.link)):
        if len(words) > MAX_LABEL or not words.isprintable():
            raise InputError(f"invalid {option} {words[:40]!a}: expected up to {MAX_LABEL} printable characters, such as bank-a")
    return label


@dataclass(frozen=True, slots=True)
class Price:
    """What the operator pays for a GB (10^9 bytes) on the wire. tariffs: (link, price a GB) of links that cost another price."""

    per_gb: float
    currency: str
    tariffs: tuple[tuple[str, float], ...] = ()

    def at(self, link: str) -> float:
        """Price of a GB on a link."""
        return dict(self.tariffs).get(link, self.per_gb)

    def of(self, size: float, link: str = "") -> float:
        """Money for this many bytes on a link."""
        return size / GB * self.at(link)


def tariffs_of(options: Iterable[str]) -> tuple[tuple[str, float], ...]:
    """(link, price) of options LINK=PRICE. Errors: InputError."""
    found: dict[str, float] = {}
    for option in options:
        link, _, price = option.rpartition("=")
        try:
            found[link] = float(price)
        except ValueError:
            link = ""
        if not link or not math.isfinite(found[link]) or found[link] < 0:
            raise InputError(f"invalid --tariff {option[:40]!a}: expected LINK=PRICE of a GB, such as satellite=2.5")
    return tuple(sorted(found.items()))


def price_of(per_gb: float | None, currency: str, tariffs: tuple[tuple[str, float], ...] = ()) -> Price | None:
    """The price of these options, None where none is given. Errors: InputError."""
    if per_gb is None and tariffs:
        raise InputError(
            "invalid --tariff without --price-per-gb: expected both, such as --price-per-gb 0.08 --tariff satellite=2.5"
        )
    if per_gb is None:
        return None
    if not math.isfinite(per_gb) or per_gb < 0:
        raise InputError(f"a price of {per_gb} a GB, it must be a number from 0 on")
    if not 0 < len(currency) <= 8 or not currency.isprintable():
        raise InputError(f"currency {currency[:20]!a}, it must have 1 to 8 characters")
    return Price(per_gb, currency, tariffs)


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
