"""What each client did in one round, from the times of its calls: fetched the base, sent an update, fetched the result.

Nothing is written here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from compeft_server.domain.records import Refusal, Round
from compeft_server.ledger.database import read
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.schema import keys, refusals, submissions, transfers

MAX_CLIENTS = 5_000
"""Clients of one round that are read."""
MAX_REFUSALS = 100


@dataclass(frozen=True, slots=True)
class CallTimes:
    """One or more calls: first start and last end in ms since 1970, and their bytes on the wire."""

    start_ms: int
    end_ms: int
    wire_bytes: int

    def joined(self, other: "CallTimes | None") -> "CallTimes":
        """Both together."""
        if other is None:
            return self
        return CallTimes(min(self.start_ms, other.start_ms), max(self.end_ms, other.end_ms), self.wire_bytes + other.wire_bytes)


@dataclass(frozen=True, slots=True)
class ClientSteps:
    """One client in one round. fetched: syncs to the base version; sent: uploads; delivered: syncs to the version that came of it; None
    where no call was recorded. update_digest: hexadecimal, of the accepted update; accepted_at_ms, merged_in: None without one.
    """

    keyid: str
    name: str
    fetched: CallTimes | None = None
    sent: CallTimes | None = None
    delivered: CallTimes | None = None
    update_digest: str = ""
    accepted_at_ms: int | None = None
    merged_in: int | None = None

    @property
    def trained_s(self) -> float | None:
        """Seconds from the end of the fetch to the start of the upload: training, and waiting before and after it."""
        if self.fetched is None or self.sent is None or self.sent.start_ms < self.fetched.end_ms:
            return None
        return (self.sent.start_ms - self.fetched.end_ms) / 1000


class RoundSteps:
    """Reads single rounds of one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._engine = ledger.engine

    def steps(self, found: Round) -> list[ClientSteps]:
        """Every edge client of a round: those whose update was accepted by its time, then those that only fetched."""
        steps: dict[str, ClientSteps] = {}
        for row in self._calls(found):
            step = steps.get(row.keyid, ClientSteps(row.keyid, row.name))
            steps[row.keyid] = _with_call(step, row, found)
        for row in self._accepted(found):
            step = steps.get(row.keyid, ClientSteps(row.keyid, row.name))
            steps[row.keyid] = replace(
                step, update_digest=row.update_digest.hex(), accepted_at_ms=row.accepted_at_ms, merged_in=row.merged_in
            )
        return sorted(steps.values(), key=lambda s: (s.accepted_at_ms is None, s.accepted_at_ms or 0, s.name))

    def refusals(self, found: Round) -> list[Refusal]:
        """What was refused for the round, oldest first, at most MAX_REFUSALS. A refusal names no run, so those since the round opened."""
        c = refusals.c
        query = sa.select(c.at_ms, c.peer, c.expert, c.round, c.code, c.reason)
        where = (c.expert == found.expert, c.round == found.round, c.at_ms >= found.opened_at_ms)
        rows = read(self._engine, query.where(*where).order_by(c.id).limit(MAX_REFUSALS))
        return [Refusal(**row._mapping) for row in rows]

    def _calls(self, found: Round) -> Sequence[sa.Row[Any]]:
        t = transfers.c
        query = sa.select(t.keyid, keys.c.name, t.direction, t.version, t.at_ms, t.seconds)
        query = query.add_columns((t.wire_received_bytes + t.wire_sent_bytes).label("wire"))
        joined = transfers.join(keys, sa.and_(keys.c.keyid == t.keyid, keys.c.role == "edge"))
        where = (t.expert == found.expert, t.run == found.run, t.round == found.round)
        return read(self._engine, query.select_from(joined).where(*where).order_by(t.id).limit(8 * MAX_CLIENTS))

    def _accepted(self, found: Round) -> Iterable[sa.Row[Any]]:
        s = submissions.c
        query = sa.select(s.keyid, keys.c.name, s.update_digest, s.accepted_at_ms, s.merged_in)
        where = (s.expert == found.expert, s.run == found.run, s.round == found.round)
        joined = submissions.join(keys, keys.c.keyid == s.keyid)
        return read(self._engine, query.select_from(joined).where(*where).limit(MAX_CLIENTS))


def _with_call(step: ClientSteps, row: Any, found: Round) -> ClientSteps:
    """The step with one more call."""
    span = CallTimes(row.at_ms, row.at_ms + round(1000 * row.seconds), row.wire)
    if row.direction == "up":
        return replace(step, sent=span.joined(step.sent))
    if row.version > found.base_version:
        return replace(step, delivered=span.joined(step.delivered))
    return replace(step, fetched=span.joined(step.fetched))
