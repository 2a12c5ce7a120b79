"""No client starves another: how many calls each may have open, and how fast each may take calls and bytes. No rules about content."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from compeft_proto.errors import BusyError, ThrottledError
from compeft_server.domain.limits import Limits

BUSY_MS = 500
"""When a client that met a full house is asked to come back."""
DAY_S = 86_400.0
MAX_CLIENTS = 65_536
"""Buckets kept in memory; they belong to enrolled keys."""


class Bucket:
    """What may be taken: `rate` a second, at most `burst` at once. It may be overdrawn, and is then closed until that is paid back."""

    def __init__(self, rate: float, burst: float, now_s: float) -> None:
        self._rate, self._burst, self._level, self._at = rate, max(burst, 1.0), max(burst, 1.0), now_s

    def level(self, now_s: float) -> float:
        """What is left now."""
        self._level = min(self._burst, self._level + self._rate * max(0.0, now_s - self._at))
        self._at = now_s
        return self._level

    def share(self, now_s: float) -> float:
        """What is left now, as a part of the burst."""
        return self.level(now_s) / self._burst

    def take(self, amount: float, now_s: float) -> None:
        """Take it, whether it is there or not."""
        self._level = self.level(now_s) - amount

    def wait_ms(self, now_s: float) -> int:
        """Milliseconds until there is one again; 0 if it is now."""
        level = self.level(now_s)
        return 0 if level >= 1.0 else int(1000 * (1.0 - level) / self._rate) + 1


class Rates:
    """Calls and bytes of each client and of all, as `limits` says. Kept in memory: a restart forgives. `now_s` is a steady clock."""

    def __init__(self, limits: Limits, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s, self._lock = now_s, threading.Lock()
        calls = (limits.calls_per_s_per_client, limits.calls_burst_per_client)
        data = (limits.bytes_per_s_per_client, limits.bytes_burst_per_client)
        day = (limits.bytes_per_day_per_client / DAY_S, limits.bytes_per_day_per_client)
        self._own = {"calls/s": calls, "bytes/s": data, "bytes/day": day}
        everybody = {"calls/s": (limits.calls_per_s_all, limits.calls_per_s_all), "bytes/s": (limits.bytes_per_s_all,) * 2}
        self._all = {name: Bucket(*rate, now_s()) for name, rate in everybody.items() if rate[0] > 0}
        self._clients: dict[str, dict[str, Bucket]] = {}

    def admit(self, keyid: str) -> None:
        """Begin one call. Errors: ThrottledError if the client's calls or bytes are used up."""
        with self._lock:
            now, own = self._now_s(), self._of(keyid)
            for name, bucket in own.items():
                self._refuse(f"key {keyid} has", name, bucket.wait_ms(now))
            if min((bucket.share(now) for bucket in own.values()), default=0.0) < 0.5:
                for name, bucket in self._all.items():
                    self._refuse("all clients together have", name, bucket.wait_ms(now))
            self._take(own, "calls/s", 1, now)

    def spend(self, keyid: str, amount: int) -> None:
        """Count bytes that a call is about to move; they may close the next one."""
        with self._lock:
            now, own = self._now_s(), self._of(keyid)
            self._take(own, "bytes/s", amount, now)
            self._take(own, "bytes/day", amount, now)

    def _of(self, keyid: str) -> dict[str, Bucket]:
        if keyid not in self._clients:
            while len(self._clients) >= MAX_CLIENTS:
                del self._clients[next(iter(self._clients))]
            now = self._now_s()
            self._clients[keyid] = {name: Bucket(*rate, now) for name, rate in self._own.items() if rate[0] > 0}
        return self._clients[keyid]

    def _take(self, own: dict[str, Bucket], name: str, amount: float, now_s: float) -> None:
        for bucket in (own.get(name), self._all.get(name)):
            if bucket is not None:
                bucket.take(amount, now_s)

    def _refuse(self, who: str, name: str, wait_ms: int) -> None:
        if wait_ms > 0:
            raise ThrottledError(f"{who} used up the share of {name}: come back in {wait_ms / 1000:.1f} s", wait_ms)


class Slots:
    """At most `each` open calls a client and `total` in all."""

    def __init__(self, each: int, total: int) -> None:
        self._each, self._total = each, total
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def take(self, keyid: str) -> Iterator[None]:
        """Hold one slot. Errors: BusyError if the client has its share, or all are taken."""
        with self._lock:
            if self._open[keyid] >= self._each:
                raise BusyError(
                    f"key {keyid} has {self._open[keyid]} calls open, its share is {self._each}: wait for one to end", BUSY_MS
                )
            if self._open.total() >= self._total:
                raise BusyError(f"all {self._total} transfers are taken: try again in a few seconds", BUSY_MS)
            self._open[keyid] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[keyid] -= 1
                if not self._open[keyid]:
                    del self._open[keyid]
