"""The ledger: append-only facts about keys, experts, rounds and bytes, in one SQL database.

Promises: when a method returns, what it recorded is durable; each method is one transaction, so a crash leaves all of it or
none; rows are only ever added, or completed once (a round closes, a submission is merged, a key is revoked). Whatever is audited
happens one at a time, also where several processes share the database: each such transaction begins with `audit.append`, and what
it checks after that still holds when it ends. Byte counts are stored, ratios are computed by whoever reads.
"""

import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import sqlalchemy as sa

from compeft_proto.merkle_log import Place
from compeft_server.ledger import audit, schema
from compeft_server.ledger.audit import Entry, Event
from compeft_server.ledger.checks.all_rows import check_all
from compeft_server.ledger.database import open_engine
from compeft_server.ledger.group_commit import GroupCommit
from compeft_server.ledger.kpis import Kpis
from compeft_server.ledger.labels import Labels
from compeft_server.ledger.members import KeyRows, Membership
from compeft_server.ledger.policy_records import Terms
from compeft_server.ledger.pools import Pools
from compeft_server.ledger.private_rounds import PrivateRows
from compeft_server.ledger.rounds import RoundRows
from compeft_server.ledger.transfers import CallRows
from compeft_server.ledger.versions import VersionRows


class Ledger(KeyRows, VersionRows, RoundRows, CallRows):
    """All tables of one aggregator, by subject: each base class has the methods of one, in the file of its name."""

    def __init__(self, database: str | Path) -> None:
        """The ledger in a SQLite file, or in the PostgreSQL of a URL. Errors: as `database.open_engine`."""
        self.engine = open_engine(database)
        super().__init__(self.engine, GroupCommit(self.engine))
        self.membership = Membership(self.engine)
        self.terms = Terms(self.engine)
        self.kpis = Kpis(self.engine)
        self.pools = Pools(self.engine)
        self.labels = Labels(self.engine)
        self.private = PrivateRows(self.engine)
        weakref.finalize(self, _let_go, self._writes, self.engine)  # a command that opens a ledger and ends need not close it

    def close(self) -> None:
        """Finish what was to be written, and let go of the database."""
        self._writes.close()
        self.engine.dispose()

    def audit_entries(self) -> list[Entry]:
        """The audit log, oldest first."""
        rows = self._rows(sa.select(schema.audit).order_by(schema.audit.c.id))
        return [Entry(row.id, Event(row.at_ms, row.action, row.subject, row.detail), row.hash, row.nodes) for row in rows]

    def check_rows(self, entries: Sequence[Entry]) -> dict[str, int]:
        """How many rows of each table are what these entries, the whole log, say. Errors: AuditError that names what is not."""
        with self.engine.connect() as connection:
            return check_all(connection, entries)

    def log_size(self) -> int:
        """How many entries the audit log has."""
        with self.engine.connect() as connection:
            return int(connection.execute(audit.SIZE).scalar_one())

    def log_subtrees(self, wanted: Iterable[Place]) -> dict[Place, bytes]:
        """The hashes of complete subtrees of the audit log, by place. Errors: AuditError."""
        with self.engine.connect() as connection:
            return audit.subtrees(connection, wanted)


def _let_go(writes: GroupCommit, engine: sa.Engine) -> None:
    writes.close()
    engine.dispose()
