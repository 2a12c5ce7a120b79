"""The audit log is a Merkle tree, and covers transfers and task metrics: what is there already is covered from now on."""

import sqlalchemy as sa
from alembic import op

from compeft_server.ledger.audit import Event, Subtrees, append
from compeft_server.ledger.checks.recorded_rows import record_of

revision, down_revision = "0012_merkle_log", "0011_kpis"
TOGETHER = 10_000


def upgrade() -> None:
    """The nodes of every entry are computed; then one entry covers all rows of each table that has none of its own."""
    op.add_column("audit", sa.Column("nodes", sa.LargeBinary, nullable=False, server_default=sa.text("''")))
    connection = op.get_bind()
    _fill(connection)
    for table in ("transfers", "quality"):
        first, last = connection.execute(sa.text(f"SELECT min(id), max(id) FROM {table}")).one()  # noqa: S608  # a constant
        if first is not None:
            append(connection, record_of(connection, table, [first, last]))


def _fill(connection: sa.Connection) -> None:
    subtrees, done = Subtrees(), 0
    query = sa.text("SELECT id, at_ms, action, subject, detail FROM audit WHERE id > :done ORDER BY id LIMIT :together")
    update = sa.text("UPDATE audit SET nodes = :nodes WHERE id = :id").bindparams(sa.bindparam("nodes", type_=sa.LargeBinary))
    while rows := connection.execute(query, {"done": done, "together": TOGETHER}).all():
        nodes = [
            {"id": row.id, "nodes": b"".join(subtrees.add(done + at, Event(row.at_ms, row.action, row.subject, row.detail)))}
            for at, row in enumerate(rows, start=1)
        ]
        connection.execute(update, nodes)
        done += len(rows)
