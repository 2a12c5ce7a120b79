"""The aggregator's locks: updates are recorded in parallel, one at a time for each client; opening or closing a round excludes them.

Long work (decoding a payload, waiting for bytes) is done outside.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ReadWriteLock:
    """A readers-writer lock: any number of `shared` holders or one `alone` holder. A waiting `alone` holder precedes new `shared` ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._waiting = 0
        self._alone = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock together with others. Not reentrant."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting == 0)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock alone."""
        with self._changed:
            self._waiting += 1
        try:
            with self._alone:
                with self._changed:
                    self._changed.wait_for(lambda: self._inside == 0)
                yield
        finally:
            with self._changed:
                self._waiting -= 1
                self._changed.notify_all()


class KeyedLocks:
    """A lock for each name."""

    def __init__(self) -> None:
        self._locks: dict[str, threading.Lock] = {}

    @contextmanager
    def take(self, name: str) -> Iterator[None]:
        """Hold the lock of `name`. Locks are never removed: the names are those of enrolled keys, so they are few."""
        with self._locks.setdefault(name, threading.Lock()):
            yield
