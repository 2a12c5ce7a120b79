"""What calls moved, what was refused, and the task metrics that were measured, as rows. Promises: those of ledger.py."""

from concurrent.futures import Future
from dataclasses import asdict
from typing import TypeVar

import sqlalchemy as sa

from compeft_server.domain.records import Quality, Refusal, Transfer
from compeft_server.ledger import audit, schema
from compeft_server.ledger.group_commit import Tables

T = TypeVar("T")


class CallRows(Tables):
    """Transfers, refusals and task metrics: what the reports add up."""

    def record_transfer(self, transfer: Transfer) -> None:
        """Record the bytes that one call moved."""
        self._recorded(schema.transfers, asdict(transfer)).result()

    def note_transfer(self, transfer: Transfer) -> Future[None]:
        """Record it without waiting: it is durable a moment later, and lost if the process is killed in that moment."""
        return self._recorded(schema.transfers, asdict(transfer))

    def record_refusal(self, refusal: Refusal) -> None:
        """Record a refused submission."""
        happened = audit.event(
            refusal.at_ms, "refuse", refusal.expert, peer=refusal.peer, code=refusal.code, reason=refusal.reason
        )
        self._insert(schema.refusals, asdict(refusal), happened)

    def record_quality(self, quality: Quality) -> None:
        """A task metric. The same arm, client and metric at the same version again changes nothing: the first report is kept."""
        try:
            self._recorded(schema.quality, asdict(quality)).result()
        except sa.exc.IntegrityError:
            return

    def transfers(self, expert: str) -> list[Transfer]:
        """All transfers of an expert in the order of recording."""
        return self._facts(schema.transfers, Transfer, expert)

    def refusals(self, expert: str) -> list[Refusal]:
        """All refusals that named this expert in the order of recording."""
        return self._facts(schema.refusals, Refusal, expert)

    def quality(self, expert: str) -> list[Quality]:
        """All task metrics of an expert in the order of recording."""
        return self._facts(schema.quality, Quality, expert)

    def _facts(self, table: sa.Table, fact: type[T], expert: str) -> list[T]:
        columns = [c for c in table.c if c.name != "id"]
        query = sa.select(*columns).where(table.c.expert == expert).order_by(table.c.id)
        return [fact(**row._mapping) for row in self._rows(query)]
