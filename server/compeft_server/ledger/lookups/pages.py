"""Long lists of the ledger, newest first and one page at a time: rounds, versions, refusals, the audit log. Nothing is written here."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from compeft_server.domain.records import Refusal, Round
from compeft_server.ledger.checks.recorded_rows import RECORD
from compeft_server.ledger.lookups.reader import LedgerReader
from compeft_server.ledger.schema import audit, refusals, rounds, submissions, versions

PAGE = 50
"""Rows that are shown at a time."""


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """One round, and how many updates it took and turned away."""

    round: Round
    accepted: int
    refused: int


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """One place in an expert log; `envelope` is the signed manifest."""

    version: int
    run: str
    round: int
    payload_bytes: int
    merge_seconds: float
    created_at_ms: int
    envelope: bytes
    participants: int


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """The small facts of one version, without its manifest."""

    version: int
    created_at_ms: int
    merge_seconds: float
    participants: int


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One entry of the audit log."""

    number: int
    at_ms: int
    action: str
    subject: str
    detail: str
    hash: bytes


class Listings(LedgerReader):
    """The pages of one ledger; each comes with the number of all rows."""

    def rounds(self, expert: str = "", state: str = "", page: int = 1) -> tuple[list[RoundSummary], int]:
        """Rounds by the time of their opening; `state` is open, closed, or empty for both."""
        where = [rounds.c.expert == expert] if expert else []
        where += {"open": [rounds.c.closed_at_ms.is_(None)], "closed": [rounds.c.closed_at_ms.is_not(None)]}.get(state, [])
        order = (rounds.c.opened_at_ms.desc(), rounds.c.expert, rounds.c.round.desc())
        shown, total = self._page(sa.select(rounds), rounds, where, order, page)
        found = [Round(**r._mapping) for r in shown]
        accepted, refused = self._counts(submissions, found), self._counts(refusals, found)
        places = [(r.expert, r.run, r.round) for r in found]
        counts = [(accepted.get(p, 0), refused.get((p[0], p[2]), 0)) for p in places]
        return [RoundSummary(r, *c) for r, c in zip(found, counts, strict=True)], total

    def versions(self, expert: str, page: int = 1, number: int | None = None) -> tuple[list[VersionSummary], int]:
        """Versions of an expert with their signed manifests: all of them, or the one of this number."""
        columns = [versions.c[f.name] for f in fields(VersionSummary) if f.name != "participants"]
        where, order = [versions.c.expert == expert], (versions.c.version.desc(),)
        where += [] if number is None else [versions.c.version == number]
        shown, total = self._page(sa.select(*columns), versions, where, order, page)
        numbers, s = [r.version for r in shown], submissions.c
        merged = sa.select(s.merged_in, sa.func.count().label("number")).where(s.expert == expert, s.merged_in.in_(numbers))
        counts = {r.merged_in: r.number for r in self._select(merged.group_by(s.merged_in))}
        return [VersionSummary(**r._mapping, participants=counts.get(r.version, 0)) for r in shown], total

    def version_facts(self, expert: str) -> list[VersionFacts]:
        """All versions of an expert, oldest first: the one list that is not cut into pages, for the report."""
        s, v = submissions.c, versions.c
        merged = sa.select(s.merged_in, sa.func.count().label("number")).where(s.expert == expert).group_by(s.merged_in)
        counts = {r.merged_in: r.number for r in self._select(merged)}
        query = sa.select(v.version, v.created_at_ms, v.merge_seconds).where(v.expert == expert).order_by(v.version)
        return [VersionFacts(**r._mapping, participants=counts.get(r.version, 0)) for r in self._select(query)]

    def refusals(self, expert: str = "", code: str = "", page: int = 1) -> tuple[list[Refusal], int]:
        """Submissions and syncs that were turned away."""
        c = refusals.c
        where = ([c.expert == expert] if expert else []) + ([c.code == code] if code else [])
        query = sa.select(c.at_ms, c.peer, c.expert, c.round, c.code, c.reason)
        shown, total = self._page(query, refusals, where, (c.id.desc(),), page)
        return [Refusal(**r._mapping) for r in shown], total

    def audit(self, action: str = "", subject: str = "", page: int = 1) -> tuple[list[AuditLine], int]:
        """Entries of the audit log; `subject` is a part of it. Those that cover transfers and task metrics: only if asked for."""
        c = audit.c
        where = [c.action == action] if action else [c.action != RECORD]
        where += [c.subject.contains(subject, autoescape=True)] if subject else []
        query = sa.select(c.id.label("number"), c.at_ms, c.action, c.subject, c.detail, c.hash)
        shown, total = self._page(query, audit, where, (c.id.desc(),), page)
        return [AuditLine(**r._mapping) for r in shown], total

    def _counts(self, table: sa.Table, found: Sequence[Round]) -> dict[tuple[Any, ...], int]:
        """Rows of each of these rounds; a refusal does not name its run."""
        by = [table.c[name] for name in ("expert", "run", "round") if name in table.c]
        where = (table.c.expert.in_({r.expert for r in found}), table.c.round.in_({r.round for r in found}))
        query = sa.select(*by, sa.func.count().label("number")).where(*where).group_by(*by)
        return {tuple(r[:-1]): r[-1] for r in self._select(query)}

    def _page(
        self, query: sa.Select[Any], table: sa.Table, where: Sequence[sa.ColumnElement[bool]], order: Sequence[Any], page: int
    ) -> tuple[Sequence[sa.Row[Any]], int]:
        total = self._select(sa.select(sa.func.count()).select_from(table).where(*where))[0][0]
        return self._select(query.where(*where).order_by(*order).limit(PAGE).offset((page - 1) * PAGE)), total
