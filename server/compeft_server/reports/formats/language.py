"""The languages of the report for people. An English sentence, with named places for its values, is the key of its translation.

English needs no catalogue. For another language dates, numbers and money are written by `babel`, which is imported only then.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from compeft_core.errors import InputError
from compeft_server.reports.formats.catalogue_ja import JAPANESE

Code = Literal["en", "ja"]
Say = Callable[..., str]
"""(English sentence, values by name) -> the sentence in a language, with its values."""
CATALOGUES: dict[str, dict[str, str]] = {"ja": JAPANESE}

_COUNTED = re.compile(r"(\S+) (\w+)\(s\)")
"""A counted English noun: "1 client(s)" is said as "1 client", "4 client(s)" as "4 clients"."""


@dataclass(frozen=True, slots=True)
class Language:
    """One language: says sentences, and writes days and counts by its custom."""

    code: Code = "en"

    def __call__(self, sentence: str, **values: object) -> str:
        """The sentence in this language with its values. Errors: KeyError for a sentence that the catalogue lacks."""
        words = sentence if self.code == "en" else CATALOGUES[self.code][sentence]
        words = words.format(**values) if values else words
        return _COUNTED.sub(lambda found: f"{found[1]} {found[2]}{'' if found[1] == '1' else 's'}", words)

    def day(self, at_ms: int) -> str:
        """A day, in UTC."""
        moment = datetime.fromtimestamp(at_ms / 1000, UTC)
        if self.code == "en":
            return moment.strftime("%-d %B %Y")
        from babel.dates import format_date

        return str(format_date(moment, "long", locale=self.code))

    def count(self, number: int) -> str:
        """A whole number."""
        if self.code == "en":
            return f"{number:,}"
        from babel.numbers import format_decimal

        return str(format_decimal(number, locale=self.code))


ENGLISH = Language()


def language_of(code: str) -> Language:
    """The language of this code. Errors: InputError for one that has no catalogue, or where babel is not installed."""
    if code == "en":
        return ENGLISH
    if code not in CATALOGUES:
        raise InputError(f"invalid --language {code[:20]!a}: expected en or {', '.join(CATALOGUES)}")
    try:
        import babel  # noqa: F401  # whether it is there
    except ModuleNotFoundError as error:
        raise InputError(f"--language {code} needs babel: pip install 'compeft[server]'") from error
    return Language("ja")
