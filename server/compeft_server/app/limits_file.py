"""The limits of an aggregator as a TOML file: any field of `Limits`, by its name. docs/protocol.md, "Limits", says what they mean."""

import tomllib
from dataclasses import fields
from pathlib import Path

from compeft_core.errors import InputError
from compeft_server.domain.limits import Limits


def read_limits(path: Path) -> Limits:
    """The limits in `path`; what it does not name keeps its default. Errors: InputError."""
    try:
        given = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    known = {field.name: field.type for field in fields(Limits)}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"{path}: no limit is named {name!r}, there are: {', '.join(sorted(known))}")
        whole = known[name] is int
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or value < 0:
            raise InputError(f"{path}: {name} is {value!r}, it must be a {'whole ' if whole else ''}number, 0 or more")
    return Limits(**given)
