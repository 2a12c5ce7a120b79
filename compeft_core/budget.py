"""Bytes and density: the size of an update before it is made, and the highest density that fits a budget of bytes.

A ternary vector of n entries, a fraction k of them kept, has an entropy of n (H(k) + k) bits if positions and signs are independent, with
H(k) = -k log2 k - (1 - k) log2 (1 - k); a dense entry takes 16 bits. Real positions are not independent, which only helps.
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from compeft_core.compress import Compression
from compeft_core.errors import InputError

T = TypeVar("T")

SLACK = 1.02
"""Most that the codec `rice` needs over the entropy on average, from a density of 1 in 1,000 on."""
HEADER_BYTES, BLOCK_BYTES, BLOCK = 64, 8, 2**16
"""The header with one scale; the index of a block; parameters in a block."""
HIGHEST = 2 / 3
"""Where H(k) + k is largest: a third of zeros, plus and minus each."""
STEPS = 60
FULL, TRIES = 0.98, 4
"""A budget is full from this part of it on; so often something is coded to get there."""
UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)")


def payload_bytes(ternary_size: int, dense_size: int, density: float) -> int:
    """Most bytes that an update of `ternary_size` and `dense_size` parameters takes, 0 < density <= 1, with one scale and positions no
    worse than random: the entropy with SLACK, header and index, and a byte for the square root of the number kept, because gaps vary.
    """
    k = min(max(density, 1 / max(1, ternary_size)), 1.0)
    other = 1 - k
    entropy = -(k * math.log2(k) + (other * math.log2(other) if other > 0 else 0.0)) + k
    fixed = HEADER_BYTES + BLOCK_BYTES * -(-ternary_size // BLOCK) + math.sqrt(k * ternary_size)
    return math.ceil(fixed + SLACK * ternary_size * entropy / 8 + 2 * dense_size)


def density_for(ternary_size: int, dense_size: int, budget_bytes: int) -> float:
    """The highest density, at most 2/3, at which such an update fits into `budget_bytes`.

    Errors: InputError if not even one entry fits, or there is nothing ternary to choose a density for.
    """
    if ternary_size == 0:
        raise InputError("the layout has no ternary parameters: density does not change the size of its updates")
    low, high = 1 / ternary_size, HIGHEST
    least = payload_bytes(ternary_size, dense_size, low)
    if least > budget_bytes:
        raise InputError(
            f"a budget of {budget_bytes:,} bytes is below the least possible, {least:,}: {2 * dense_size:,} of it are dense"
        )
    if payload_bytes(ternary_size, dense_size, high) <= budget_bytes:
        return high
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if payload_bytes(ternary_size, dense_size, middle) <= budget_bytes else (low, middle)
    return low


def within(compression: Compression, ternary_size: int, dense_size: int, budget_bytes: int) -> Compression:
    """The same compression at its own density, or at the lower one that fits. Errors: as `density_for`."""
    return replace(compression, density=min(compression.density, density_for(ternary_size, dense_size, budget_bytes)))


def filled(
    make: Callable[[Compression], T],
    weigh: Callable[[T], int],
    asked: Compression,
    ternary_size: int,
    dense_size: int,
    budget_bytes: int,
) -> tuple[Compression, T]:
    """What `make` codes at the highest density, at most the one `asked` for, at which it weighs no more than `budget_bytes`, and how.

    The first try goes by what is foretold for random positions, the next by what that really weighed in relation to it, those after that
    by the line through the last two. Errors: InputError as `density_for`, and if nothing made would fit.
    """
    tried: dict[float, tuple[int, T]] = {}
    settings, least = within(asked, ternary_size, dense_size, budget_bytes), payload_bytes(ternary_size, dense_size, 0)
    goal, before = (1 + FULL) / 2 * budget_bytes, (0, 0)
    while settings.density not in tried and len(tried) < TRIES:
        made = make(settings)
        weight, foretold = weigh(made), payload_bytes(ternary_size, dense_size, settings.density)
        tried[settings.density] = weight, made
        if FULL * budget_bytes <= weight <= budget_bytes or weight == before[1]:
            break
        aim = foretold + (goal - weight) * (foretold - before[0]) / (weight - before[1])
        settings, before = within(asked, ternary_size, dense_size, max(least, int(aim))), (foretold, weight)
    fitting = [density for density, (weight, _) in tried.items() if weight <= budget_bytes]
    if not fitting:
        raise InputError(
            f"a budget of {budget_bytes:,} bytes: the least that it came to was {min(w for w, _ in tried.values()):,}"
        )
    return replace(asked, density=max(fitting)), tried[max(fitting)][1]


def bytes_of(text: str) -> int:
    """A size as people write it, such as 200kB, 5 MB or 1.5MiB. Errors: InputError."""
    found = SIZE.fullmatch(text.strip())
    if not found or found[2] not in UNITS or float(found[1]) <= 0:
        raise InputError(f"size {text[:40]!r}: write a number above 0 and a unit, one of {', '.join(filter(None, UNITS))}")
    return int(float(found[1]) * UNITS[found[2]])
