"""Front coding of sorted names: each name is coded by the prefix and the suffix that it shares with the name before it.

    front_code(["layer.1.weight", "layer.2.weight"])   # (0, 0, b"layer.1.weight"), (6, 7, b"2")

Invariant: a list of names has one coding. The shared prefix is the longest possible, then the shared suffix is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compeft_core.errors import FormatError, LimitError
from compeft_core.layout import MAX_NAME_BYTES, MAX_NAMES_BYTES


@dataclass(frozen=True, slots=True)
class FrontCoded:
    """A name: `prefix` first bytes of the name before it, its own `middle`, `suffix` last bytes of the name before it."""

    prefix: int
    suffix: int
    middle: bytes


def front_code(names: Sequence[str]) -> list[FrontCoded]:
    """The coding of names, each at most MAX_NAME_BYTES of UTF-8."""
    octets = [name.encode() for name in names]
    return [_share(before, name) for before, name in zip([b"", *octets], octets, strict=False)]


def front_decode(rows: Iterable[FrontCoded]) -> list[str]:
    """The names behind a coding.

    Errors: FormatError if one is too long, not UTF-8, or if another coding is the right one; LimitError as soon as
    the names made have more than MAX_NAMES_BYTES together: a few coded bytes can stand for a name of MAX_NAME_BYTES.
    """
    names: list[str] = []
    before, total = b"", 0
    for row in rows:
        before = _unshare(before, row)
        total += len(before)
        if total > MAX_NAMES_BYTES:
            raise LimitError(f"tensor names have more than {MAX_NAMES_BYTES} bytes in all")
        names.append(_text(before))
    return names


def _share(before: bytes, name: bytes) -> FrontCoded:
    most = min(len(before), len(name))
    prefix = _common(before, name, most)
    suffix = _common(before[::-1], name[::-1], most - prefix)
    return FrontCoded(prefix, suffix, name[prefix : len(name) - suffix])


def _unshare(before: bytes, row: FrontCoded) -> bytes:
    if row.prefix + row.suffix > len(before) or row.prefix + row.suffix + len(row.middle) > MAX_NAME_BYTES:
        raise FormatError(f"tensor name shares {row.prefix} + {row.suffix} bytes with one of {len(before)}, or is too long")
    name = before[: row.prefix] + row.middle + before[len(before) - row.suffix :]
    if _share(before, name) != row:
        raise FormatError(f"tensor name {name[:80]!a} is not coded by the most that it shares with the one before")
    return name


def _common(a: bytes, b: bytes, most: int) -> int:
    """Length of the longest common prefix, at most `most`: by halving, so that long hostile names cost no long loops."""
    least = 0
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if a[:middle] == b[:middle] else (least, middle - 1)
    return least


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"tensor name {name[:80]!a} is not UTF-8") from error
