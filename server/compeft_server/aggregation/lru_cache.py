"""What was used last, kept in memory up to so many bytes, so that it need not be read and checked again."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """The values that were kept or found last, `size` bytes each: `max_bytes` of them in all, or only the last one. Thread-safe."""

    def __init__(self, max_bytes: int, size: Callable[[Value], int]) -> None:
        self._max_bytes, self._size, self._bytes = max_bytes, size, 0
        self._held: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, key: Key, value: Value) -> None:
        """Keep a value, instead of an older one of this key, and of those that were used longest ago where there is no room."""
        with self._lock:
            if key in self._held:
                self._bytes -= self._size(self._held.pop(key))
            self._held[key] = value
            self._bytes += self._size(value)
            while self._bytes > self._max_bytes and len(self._held) > 1:
                self._bytes -= self._size(self._held.popitem(last=False)[1])

    def find(self, key: Key) -> Value | None:
        """The value, or None if it is not held."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key]
