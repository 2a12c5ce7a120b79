"""Finds experts, members, rounds and versions by a piece of their name, key, run or number. Nothing is written here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from compeft_server.ledger.database import read
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.schema import experts, keys, rounds, versions

MOST = 20
"""Hits of one kind that are shown; the page says where there are more."""
LEAST_LETTERS = 2
"""A piece of a digest or key must have this many letters."""
MAX_NUMBER = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Hits:
    """What was found, at most MOST + 1 of each kind: names of experts; (keyid, name, role); (expert, run, round); (expert, version)."""

    experts: tuple[str, ...] = ()
    members: tuple[tuple[str, str, str], ...] = ()
    rounds: tuple[tuple[str, str, int], ...] = ()
    versions: tuple[tuple[str, int], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing was found."""
        return not (self.experts or self.members or self.rounds or self.versions)


class LedgerSearch:
    """Looks through one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._engine = ledger.engine

    def find(self, words: str) -> Hits:
        """Whatever has these words in it; a whole number also finds rounds and versions of this number, digits of a digest its version."""
        words = words.strip()
        if not words:
            return Hits()
        number = int(words) if words.isascii() and words.isdigit() and int(words) <= MAX_NUMBER else None
        return Hits(
            experts=tuple(r.expert for r in self._found(sa.select(experts.c.expert), _has(experts.c.expert, words))),
            members=self._members(words),
            rounds=self._rounds(words, number),
            versions=self._versions(words, number),
        )

    def _members(self, words: str) -> tuple[tuple[str, str, str], ...]:
        k = keys.c
        where = sa.or_(_has(k.name, words), k.keyid.startswith(words.lower(), autoescape=True))
        rows = self._found(sa.select(k.keyid, k.name, k.role).order_by(k.name), where)
        return tuple((r.keyid, r.name, r.role) for r in rows)

    def _rounds(self, words: str, number: int | None) -> tuple[tuple[str, str, int], ...]:
        c = rounds.c
        where = c.run == words if number is None else sa.or_(c.run == words, c.round == number)
        if number is None and len(words) >= LEAST_LETTERS:
            where = c.run.startswith(words, autoescape=True)
        rows = self._found(sa.select(c.expert, c.run, c.round).order_by(c.opened_at_ms.desc()), where)
        return tuple((r.expert, r.run, r.round) for r in rows)

    def _versions(self, words: str, number: int | None) -> tuple[tuple[str, int], ...]:
        c = versions.c
        query = sa.select(c.expert, c.version).order_by(c.expert, c.version)
        if number is not None:
            return tuple((r.expert, r.version) for r in self._found(query, c.version == number))
        try:
            digest = bytes.fromhex(words)
        except ValueError:
            return ()
        within = sa.and_(c.state_digest >= digest, c.state_digest <= digest.ljust(32, b"\xff"))
        return tuple((r.expert, r.version) for r in self._found(query, within))

    def _found(self, query: sa.Select[Any], where: sa.ColumnElement[bool]) -> Sequence[sa.Row[Any]]:
        return read(self._engine, query.where(where).limit(MOST + 1))


def _has(column: sa.ColumnElement[str], words: str) -> sa.ColumnElement[bool]:
    return sa.func.lower(column).contains(words.lower(), autoescape=True)
