"""The newest figures of the live page, kept until the ledger changes or a minute is over: many open pages then cost one reading."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from compeft_server.ledger.lookups.totals import Summaries

T = TypeVar("T")
MINUTE_MS = 60_000
MAX_KEPT = 32


class KeptFigures:
    """Results by name, each of the ledger as it was at its newest change. Safe to use from several threads."""

    def __init__(self, summaries: Summaries, now_ms: Callable[[], int]) -> None:
        self._summaries, self._now_ms = summaries, now_ms
        self._lock = threading.Lock()
        self._at: tuple[int, ...] = ()
        self._found: dict[object, Any] = {}

    def get(self, name: object, read: Callable[[], T]) -> T:
        """The result of `read`, read now if the ledger has changed since it was read last, or a minute began."""
        at = (*self._summaries.marks(), self._now_ms() // MINUTE_MS)
        with self._lock:
            if at != self._at or len(self._found) > MAX_KEPT:
                self._at, self._found = at, {}
            if name in self._found:
                found: T = self._found[name]
                return found
        found = read()
        with self._lock:
            if at == self._at:
                self._found[name] = found
        return found
