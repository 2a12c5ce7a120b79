"""Shamir's secret sharing of 32-byte secrets over the integers modulo p = 2^256 + 297, the smallest prime above 2^256.

A secret s is the constant term of a polynomial of degree threshold - 1 with random coefficients; share x is its value at x >= 1.
`threshold` shares give s by Lagrange's formula at 0; fewer are independent of s.
"""

from collections.abc import Callable, Mapping, Sequence

from compeft_core.errors import InputError

PRIME = 2**256 + 297
SECRET_BYTES, SHARE_BYTES = 32, 33
Random = Callable[[int], bytes]
"""A source of this number of secret random bytes."""


def split(secret: bytes, threshold: int, places: Sequence[int], random: Random) -> list[bytes]:
    """One share (33 bytes, big-endian) for each place (1 or more, all different). Errors: InputError."""
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(places) or len(set(places)) != len(places) or min(places) < 1:
        raise InputError(f"cannot split {len(secret)} bytes into {len(places)} shares of which {threshold} suffice")
    terms = [int.from_bytes(secret, "big"), *(int.from_bytes(random(48), "big") % PRIME for _ in range(threshold - 1))]
    return [_value(terms, place).to_bytes(SHARE_BYTES, "big") for place in places]


def join(shares: Mapping[int, bytes], coefficients: Mapping[int, int] | None = None) -> bytes | None:
    """The secret of these shares by place, None if they are of no 32-byte secret. Exactly `threshold` shares must be given, or more that
    are all right. coefficients: `lagrange(shares)`, where they are known. Errors: InputError for a share of another length.
    """
    if any(len(share) != SHARE_BYTES for share in shares.values()):
        raise InputError(f"a share of another length: expected {SHARE_BYTES} bytes")
    factors = coefficients or lagrange(sorted(shares))
    value = sum(factors[place] * int.from_bytes(share, "big") for place, share in shares.items()) % PRIME
    return value.to_bytes(SECRET_BYTES, "big") if value < 2 ** (8 * SECRET_BYTES) else None


def lagrange(places: Sequence[int]) -> dict[int, int]:
    """What the shares at these places are multiplied by to give the value at 0."""
    factors = {}
    for place in places:
        above, below = 1, 1
        for other in places:
            if other != place:
                above, below = above * other % PRIME, below * (other - place) % PRIME
        factors[place] = above * pow(below, -1, PRIME) % PRIME
    return factors


def _value(terms: Sequence[int], place: int) -> int:
    value = 0
    for term in reversed(terms):
        value = (value * place + term) % PRIME
    return value
