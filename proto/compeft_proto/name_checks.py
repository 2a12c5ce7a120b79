"""Checks of names that come from outside: experts, runs, metrics."""

from compeft_core.errors import FormatError

MAX_NAME = 128


def check_name(name: str, what: str) -> str:
    """`name`, if it may name an expert, a run or a metric: 1 to 128 of letters, digits and `._/-`, no `..`. Errors: FormatError."""
    allowed = name.isascii() and all(c.isalnum() or c in "._/-" for c in name)
    if not 0 < len(name) <= MAX_NAME or not allowed or ".." in name or name.startswith("/"):
        raise FormatError(f"{what} name {name[:40]!a}, allowed are 1 to {MAX_NAME} letters, digits and ._/-")
    return name


def printable(text: str) -> str:
    """`text` for a terminal: whatever is not printable is escaped, as Python writes it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
