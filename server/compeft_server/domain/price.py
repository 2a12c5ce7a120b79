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
        """Money for so many bytes."""
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
