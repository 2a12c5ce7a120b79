"""What is kept in memory stays within its bytes, and what was used last stays longest."""

from compeft_server.aggregation.lru_cache import Recent


def test_what_was_used_longest_ago_makes_room() -> None:
    recent = Recent[str, bytes](10, len)
    recent.keep("a", b"aaaa")
    recent.keep("b", b"bbbb")
    assert recent.find("a") == b"aaaa"
    recent.keep("c", b"cccc")
    assert (recent.find("a"), recent.find("b"), recent.find("c")) == (b"aaaa", None, b"cccc")


def test_another_value_of_the_same_key_takes_its_place() -> None:
    recent = Recent[str, bytes](10, len)
    recent.keep("a", b"a" * 8)
    recent.keep("a", b"a")
    recent.keep("b", b"b" * 9)
    assert (recent.find("a"), recent.find("b")) == (b"a", b"b" * 9)


def test_what_is_larger_than_all_the_room_is_kept_alone() -> None:
    recent = Recent[str, bytes](10, len)
    recent.keep("a", b"a")
    recent.keep("large", b"l" * 11)
    assert (recent.find("a"), recent.find("large")) == (None, b"l" * 11)
    recent.keep("b", b"b")
    assert (recent.find("large"), recent.find("b")) == (None, b"b")
