"""Who may change what at the same time: many updates side by side, a round's opening or closing alone, one update a client.

Long work (decoding a payload, waiting for bytes) is done outside.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ReadWriteLock:
    """Many may be inside `shared`, or one inside `alone`. Who wants to be alone goes before those who come after."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._waiting = 0
        self._alone = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Be inside with others. Not to be entered twice by one thread."""
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
        """Be the only one inside."""
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
    """One at a time for each name; names do not wait for each other."""

    def __init__(self) -> None:
        self._locks: dict[str, threading.Lock] = {}

    @contextmanager
    def take(self, name: str) -> Iterator[None]:
        """Hold the turn of `name`. The names are those of enrolled keys, so they are few."""
        with self._locks.setdefault(name, threading.Lock()):
            yield
