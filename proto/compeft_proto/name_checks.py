"""Checks of names that come from outside: experts, runs, metrics."""

from compeft_core.errors import FormatError, InputError

MAX_NAME = 128


def check_name(name: str, what: str) -> str:
    """`name`, if it may name an expert, a run or a metric: 1 to 128 of letters, digits and `._/-`, no `..`. Errors: FormatError."""
    if not _is_name(name):
        raise FormatError(_expected(name, what))
    return name


def typed_name(name: str, what: str) -> str:
    """`name`, if `check_name` takes it; for a name that a person typed. Errors: InputError."""
    if not _is_name(name):
        raise InputError(_expected(name, what))
    return name


def _is_name(name: str) -> bool:
    allowed = name.isascii() and all(c.isalnum() or c in "._/-" for c in name)
    return 0 < len(name) <= MAX_NAME and allowed and ".." not in name and not name.startswith("/")


def _expected(name: str, what: str) -> str:
    return f"invalid {what} name {name[:40]!a}: expected 1 to {MAX_NAME} letters, digits and ._/-, no '..', no '/' at the start"


def printable(text: str) -> str:
    """`text` for a terminal: whatever is not printable is escaped, as Python writes it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
