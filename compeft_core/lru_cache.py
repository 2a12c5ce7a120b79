"""A cache in memory that is bounded in bytes: the values used last stay, those used longest ago make room.

    cache = LruCache[str, bytes](max_bytes=10, size=len)
    cache.put("a", b"aaaa")
    cache.put("b", b"bbbb")
    cache.get("a")              # "a" is now used later than "b"
    cache.put("c", b"cccc")     # 12 bytes: "b" goes
    cache.keys()                # ["a", "c"]

Invariant: after every call the values take at most `max_bytes`, or there is one value alone and `keep_last` is set. All methods are safe
to call from several threads. (Not cachetools.LRUCache, which refuses a value larger than the whole cache and takes no lock.)
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """Values by key, `size(value)` bytes each, `max_bytes` of them in all.

    keep_last: a value that is larger than `max_bytes` is kept alone until the next one comes; without it, it is not kept.
    """

    def __init__(self, max_bytes: int, size: Callable[[Value], int], keep_last: bool = True) -> None:
        self._max_bytes = max_bytes
        self._size = size
        self._fewest = 1 if keep_last else 0
        self._bytes = 0
        self._held: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes of all values held."""
        return self._bytes

    def keys(self) -> list[Key]:
        """Keys of the values held, the one used longest ago first."""
        with self._lock:
            return list(self._held)

    @property
    def max_bytes(self) -> int:
        """Most bytes of all values."""
        return self._max_bytes

    def items(self) -> list[tuple[Key, Value]]:
        """Keys and values held, the one used longest ago first; this does not count as a use."""
        with self._lock:
            return list(self._held.items())

    def put(self, key: Key, value: Value) -> None:
        """Hold a value, in place of an earlier one of this key; drop the values used longest ago when the capacity is exceeded."""
        with self._lock:
            if key in self._held:
                self._bytes -= self._size(self._held.pop(key))
            self._held[key] = value
            self._bytes += self._size(value)
            while self._bytes > self._max_bytes and len(self._held) > self._fewest:
                self._bytes -= self._size(self._held.popitem(last=False)[1])

    def get(self, key: Key) -> Value | None:
        """The value, which is now the one used last; None if it is not held."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key]

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self._held.clear()
            self._bytes = 0
