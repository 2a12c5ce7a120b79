"""Sums over the whole ledger, as SQL aggregates: what the live page and the operator's metrics show.

A ledger of ten thousand rounds answers each of these with few rows: sums are grouped in the database, long lists are in pages.py.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from compeft_server.ledger.lookups.moved import Moved, MovedBytes
from compeft_server.ledger.lookups.quality import Measurements
from compeft_server.ledger.schema import audit, experts, keys, quality, refusals, rounds, submissions, transfers, versions


@dataclass(frozen=True, slots=True)
class ExpertSummary:
    """One expert and the ends of its log."""

    name: str
    layout: bytes
    created_at_ms: int
    head: int
    newest_at_ms: int
    kind: str


@dataclass(frozen=True, slots=True)
class ClientSummary:
    """An enrolled key and what it did."""

    name: str
    keyid: str
    role: str
    enrolled_at_ms: int
    revoked_at_ms: int | None
    last_at_ms: int | None
    moved: Moved


class Summaries(MovedBytes, Measurements):
    """The sums of one ledger, by subject: each base class has the methods of one."""

    def experts(self) -> list[ExpertSummary]:
        """All experts by name, with the ends of their logs."""
        v = versions.c
        query = (
            sa.select(experts.c.expert, experts.c.layout, experts.c.created_at_ms, experts.c.kind)
            .add_columns(sa.func.max(v.version).label("head"), sa.func.max(v.created_at_ms).label("newest"))
            .join(versions, v.expert == experts.c.expert)
            .group_by(experts.c.expert, experts.c.layout, experts.c.created_at_ms, experts.c.kind)
            .order_by(experts.c.expert)
        )
        return [ExpertSummary(r.expert, r.layout, r.created_at_ms, r.head, r.newest, r.kind) for r in self._select(query)]

    def clients(self) -> list[ClientSummary]:
        """All enrolled keys, by name, with what each moved."""
        moved = self._moved(transfers.c.keyid, ())
        seen = sa.select(transfers.c.keyid, sa.func.max(transfers.c.at_ms).label("last")).group_by(transfers.c.keyid)
        last = {r.keyid: r.last for r in self._select(seen)}
        c = keys.c
        query = sa.select(c.name, c.keyid, c.role, c.enrolled_at_ms, c.revoked_at_ms).order_by(c.name)
        rows = self._select(query)
        return [ClientSummary(**r._mapping, last_at_ms=last.get(r.keyid), moved=moved.get(r.keyid, Moved())) for r in rows]

    def merge_times(self, expert: str) -> dict[int, tuple[bytes, float]]:
        """By version: its sealed manifest, and the seconds spent merging it."""
        c = versions.c
        query = sa.select(c.version, c.envelope, c.merge_seconds).where(c.expert == expert)
        return {r.version: (r.envelope, r.merge_seconds) for r in self._select(query)}

    def newest_update(self, expert: str) -> tuple[bytes, str] | None:
        """The envelope of the update that was accepted last, and its keyid; None if absent."""
        c = submissions.c
        query = sa.select(c.envelope, c.keyid).where(c.expert == expert).order_by(c.accepted_at_ms.desc()).limit(1)
        rows = self._select(query)
        return (rows[0].envelope, rows[0].keyid) if rows else None

    def newest_updates(self, expert: str, most: int) -> list[tuple[bytes, str]]:
        """(envelope, keyid) of the updates that were accepted last, at most `most`, newest first."""
        c = submissions.c
        query = sa.select(c.envelope, c.keyid).where(c.expert == expert).order_by(c.accepted_at_ms.desc()).limit(most)
        return [(r.envelope, r.keyid) for r in self._select(query)]

    def refused_by_code(self) -> dict[str, int]:
        """How many were refused, by code, the most frequent first."""
        c, count = refusals.c, sa.func.count().label("number")
        return {r.code: r.number for r in self._select(sa.select(c.code, count).group_by(c.code).order_by(count.desc(), c.code))}

    def actions(self) -> list[str]:
        """The actions in the audit log, sorted."""
        return sorted(r.action for r in self._select(sa.select(audit.c.action).distinct()))

    def round_counts(self) -> dict[str, tuple[int, int]]:
        """By expert: (rounds opened, rounds closed)."""
        c = rounds.c
        query = sa.select(c.expert, sa.func.count().label("opened"), sa.func.count(c.closed_at_ms).label("closed"))
        return {r.expert: (r.opened, r.closed) for r in self._select(query.group_by(c.expert))}

    def merged_in(self) -> dict[str, tuple[int, float]]:
        """By expert: (versions, seconds spent merging them)."""
        c = versions.c
        query = sa.select(c.expert, sa.func.count().label("number"), sa.func.sum(c.merge_seconds).label("spent")).group_by(
            c.expert
        )
        return {r.expert: (r.number, r.spent) for r in self._select(query)}

    def accepted(self) -> dict[str, int]:
        """By expert: updates accepted."""
        c = submissions.c
        query = sa.select(c.expert, sa.func.count().label("number")).group_by(c.expert)
        return {r.expert: r.number for r in self._select(query)}

    def marks(self) -> tuple[int, ...]:
        """Numbers that change whenever anything that is shown does: what the live page watches."""
        newest = [
            sa.func.coalesce(sa.select(sa.func.max(t.c.id)).scalar_subquery(), 0) for t in (transfers, quality, refusals, audit)
        ]
        return tuple(int(n) for n in self._select(sa.select(*newest))[0])
