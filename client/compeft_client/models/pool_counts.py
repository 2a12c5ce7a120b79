"""Counters of an ExpertPool since it was made; safe to use from several threads."""

import threading


class PoolCounts:
    """Switches, how many of them found their expert in memory, and the seconds that they took."""

    def __init__(self, started_at_ms: int) -> None:
        self.started_at_ms = started_at_ms
        self.switches = self.hits = self.misses = 0
        self.switch_seconds = self.decode_seconds = 0.0
        self._lock = threading.Lock()

    def switched(self, seconds: float) -> None:
        """The model has another expert, or composition, after `seconds`."""
        with self._lock:
            self.switches += 1
            self.switch_seconds += seconds

    def looked(self, hit: bool) -> None:
        """A switch needed an expert, which was in memory or not."""
        with self._lock:
            self.hits += hit
            self.misses += not hit

    def decoded(self, seconds: float) -> None:
        """An expert was read from its file and decoded."""
        with self._lock:
            self.decode_seconds += seconds
