"""Who and what is late: members that lack the newest version, rounds past their deadline. Nothing is written here."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from compeft_server.domain.records import Round
from compeft_server.ledger.database import read
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.schema import keys, refusals, rounds, transfers, versions

MOST = 20


@dataclass(frozen=True, slots=True)
class MemberVersion:
    """The newest version of an expert that a member in force was delivered, and the expert's newest (`head`)."""

    keyid: str
    name: str
    expert: str
    version: int
    head: int

    @property
    def missing(self) -> int:
        """Versions that were published since."""
        return self.head - self.version


class Behind:
    """Asks one ledger what is late."""

    def __init__(self, ledger: Ledger) -> None:
        self._engine = ledger.engine

    def delivered(self, keyids: Sequence[str] | None = None) -> list[MemberVersion]:
        """What edge clients and readers in force have of each expert that was delivered to them; `keyids`: of these alone."""
        t, k, v = transfers.c, keys.c, versions.c
        heads = sa.select(v.expert, sa.func.max(v.version).label("head")).group_by(v.expert).subquery()
        moved = sa.select(t.keyid, t.expert, sa.func.max(t.version).label("version")).where(t.direction == "down", t.expert != "")
        moved = moved if keyids is None else moved.where(t.keyid.in_(keyids))
        newest = moved.group_by(t.keyid, t.expert).subquery()
        query = sa.select(newest.c.keyid, k.name, newest.c.expert, newest.c.version, heads.c.head)
        query = query.join(keys, k.keyid == newest.c.keyid).join(heads, heads.c.expert == newest.c.expert)
        rows = self._select(query.where(k.revoked_at_ms.is_(None), k.role != "conductor").order_by(k.name, newest.c.expert))
        return [MemberVersion(**row._mapping) for row in rows]

    def packages(self, digests: Collection[str]) -> dict[str, tuple[str, int, int]]:
        """SHA-256 of a file -> (expert, its version, the expert's newest version), of those that are versions of packages."""
        v = versions.c
        heads = sa.select(v.expert, sa.func.max(v.version).label("head")).group_by(v.expert).subquery()
        query = sa.select(v.state_digest, v.expert, v.version, heads.c.head).join(heads, heads.c.expert == v.expert)
        wanted = [bytes.fromhex(d) for d in digests]
        return {
            r.state_digest.hex(): (r.expert, r.version, r.head) for r in self._select(query.where(v.state_digest.in_(wanted)))
        }

    def late_rounds(self, now_ms: int) -> list[Round]:
        """Rounds that are open past their deadline, the longest first, at most MOST."""
        c = rounds.c
        query = sa.select(rounds).where(c.closed_at_ms.is_(None), c.deadline_ms < now_ms).order_by(c.deadline_ms).limit(MOST)
        return [Round(**row._mapping) for row in self._select(query)]

    def refused_since(self, at_ms: int) -> dict[str, int]:
        """How many were refused from a time on, by code."""
        c = refusals.c
        query = sa.select(c.code, sa.func.count().label("number")).where(c.at_ms >= at_ms).group_by(c.code)
        return {row.code: row.number for row in self._select(query)}

    def _select(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        return read(self._engine, query)
