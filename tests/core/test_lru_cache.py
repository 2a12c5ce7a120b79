"""What is kept in memory stays within its bytes, and what was used last stays longest."""

from compeft_core.lru_cache import LruCache


def test_what_was_used_longest_ago_makes_room() -> None:
    cache = LruCache[str, bytes](10, len)
    cache.put("a", b"aaaa")
    cache.put("b", b"bbbb")
    assert cache.get("a") == b"aaaa"
    cache.put("c", b"cccc")
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (b"aaaa", None, b"cccc")


def test_another_value_of_the_same_key_takes_its_place() -> None:
    cache = LruCache[str, bytes](10, len)
    cache.put("a", b"a" * 8)
    cache.put("a", b"a")
    cache.put("b", b"b" * 9)
    assert (cache.get("a"), cache.get("b")) == (b"a", b"b" * 9)


def test_what_is_larger_than_all_the_room_is_kept_alone() -> None:
    cache = LruCache[str, bytes](10, len)
    cache.put("a", b"a")
    cache.put("large", b"l" * 11)
    assert (cache.get("a"), cache.get("large")) == (None, b"l" * 11)
    cache.put("b", b"b")
    assert (cache.get("large"), cache.get("b")) == (None, b"b")


def test_without_keep_last_what_is_larger_than_all_the_room_is_not_kept_and_all_else_makes_room() -> None:
    cache = LruCache[str, bytes](10, len, keep_last=False)
    cache.put("a", b"a")
    cache.put("large", b"l" * 11)
    assert (cache.keys(), cache.held_bytes) == ([], 0)


def test_a_cleared_cache_holds_nothing_and_takes_values_again() -> None:
    cache = LruCache[str, bytes](10, len)
    cache.put("a", b"a" * 10)
    cache.clear()
    assert (cache.get("a"), cache.held_bytes) == (None, 0)
    cache.put("b", b"b" * 10)
    assert (cache.keys(), cache.held_bytes) == (["b"], 10)
