"""No client starves another: how many calls each may have open, and the end of calls that stand still. No rules about content."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from compeft_proto.errors import BusyError


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
                raise BusyError(f"key {keyid} has {self._open[keyid]} calls open, its share is {self._each}: wait for one to end")
            if self._open.total() >= self._total:
                raise BusyError(f"all {self._total} transfers are taken: try again in a few seconds")
            self._open[keyid] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[keyid] -= 1
                if not self._open[keyid]:
                    del self._open[keyid]


class Watchdog:
    """Cancels calls that move nothing for `stall_s` seconds. There is no limit on how long a call that moves may take."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._moved: dict[grpc.ServicerContext, float] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def moved(self, context: grpc.ServicerContext) -> None:
        """Note that a call begins, or has just moved something."""
        with self._lock:
            self._moved[context] = time.monotonic()

    def over(self, context: grpc.ServicerContext) -> None:
        """Note that a call has ended."""
        with self._lock:
            self._moved.pop(context, None)

    def _watch(self) -> None:
        while True:
            time.sleep(self._stall_s / 4)
            now = time.monotonic()
            with self._lock:
                stalled = [c for c, at in self._moved.items() if now - at > self._stall_s]
            for context in stalled:
                context.cancel()  # type: ignore[no-untyped-call]  # grpc's stubs leave it untyped
