"""Which refusals become rows of the ledger: the first ones of a kind, then one a minute that says how many there were.

Every refusal is a line of the log and a count of the metrics; a row is kept for good, so a client must not make as many as it likes.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from compeft_server.domain.records import Refusal
from compeft_server.rpc.rate_limits import Bucket

OF_A_KIND, OF_A_CLIENT = (1 / 60, 5.0), (1 / 10, 100.0)
"""Rows a second, and at once: of one client with one code for one expert and round; and of one client."""
MOST_KINDS = 4096
"""Kinds that are remembered; the oldest is forgotten first."""


@dataclass(slots=True)
class _Kind:
    """Refusals alike: what may still become rows, and how many have not."""

    bucket: Bucket
    unrecorded: int = 0


class RefusalRows:
    """Decides on one server's refusals; its event loop is the only caller. `now_s` is a steady clock."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._kinds: OrderedDict[tuple[str, ...], _Kind] = OrderedDict()

    def row(self, who: str, refusal: Refusal) -> Refusal | None:
        """The row for a refusal of this key or host, None if it is only counted."""
        now = self._now_s()
        kind = self._kind((who, refusal.code, refusal.expert, str(refusal.round)), OF_A_KIND, now)
        client = self._kind((who,), OF_A_CLIENT, now)
        if kind.bucket.wait_ms(now) or client.bucket.wait_ms(now):
            kind.unrecorded += 1
            return None
        kind.bucket.take(1, now)
        client.bucket.take(1, now)
        more, kind.unrecorded = kind.unrecorded, 0
        return replace(refusal, reason=f"{refusal.reason} ({more} more like it before)") if more else refusal

    def _kind(self, key: tuple[str, ...], rate: tuple[float, float], now: float) -> _Kind:
        found = self._kinds.pop(key, None) or _Kind(Bucket(*rate, now))
        self._kinds[key] = found
        while len(self._kinds) > MOST_KINDS:
            self._kinds.popitem(last=False)
        return found
