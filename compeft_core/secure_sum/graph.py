"""Who shares masks with whom: everybody with everybody up to 100 clients, else a random ring in which each has few neighbours (SecAgg+,
Bell et al., CCS 2020). And how many of a client's neighbours must agree.
"""

import hashlib
import math
from collections.abc import Iterable

COMPLETE = 100
"""Most clients of a complete graph."""


def degree(clients: int) -> int:
    """Neighbours of each client among this many: all others, or 16 for each doubling of the number, which leaves each client half of its
    neighbours when 30 % of all drop out (each misses that with a probability below 10^-5).
    """
    return clients - 1 if clients <= COMPLETE else min(clients - 1, 16 * math.ceil(math.log2(clients)))


def threshold(neighbours: int) -> int:
    """How many shares give a secret: more than half of the neighbours, so that no two disjoint halves give one each."""
    return neighbours // 2 + 1


def neighbours_of(ids: Iterable[bytes], session: bytes) -> dict[bytes, tuple[bytes, ...]]:
    """The neighbours of each client, sorted. The ring is in the order of SHA-256(session || id), which nobody chooses who does not choose
    the session after the ids are known.
    """
    ring = sorted(set(ids), key=lambda each: hashlib.sha256(session + each).digest())
    count = len(ring)
    reach = degree(count) // 2 if degree(count) < count - 1 else count
    found = {}
    for place, each in enumerate(ring):
        near = {ring[(place + hop) % count] for hop in range(-reach, reach + 1)} if reach < count else set(ring)
        found[each] = tuple(sorted(near - {each}))
    return found
