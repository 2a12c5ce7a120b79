"""Rows that have no audit entry of their own, transfers and task metrics: each transaction that adds some adds one entry that covers them.

The entry is `record` of the table's name, with the first and last id, the number of rows, and the SHA-256 of the rows as they are stored:
one canonical JSON object a row, then a newline; a real number is written as C's `%a` does. `form` names the columns.
"""

import hashlib
from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from compeft_proto.round_task import canonical_json
from compeft_server.ledger import audit, schema
from compeft_server.ledger.audit import AuditError, Entry, Event

RECORD = "record"
FORM = 1
COLUMNS = {
    ("transfers", 1): (
        *("id", "at_ms", "keyid", "expert", "run", "round", "version", "direction", "dense_fp32_bytes", "payload_bytes"),
        *("wire_received_bytes", "wire_sent_bytes", "seconds", "relayed_bytes", "flow_bytes", "flow_seconds"),
    ),
    ("quality", 1): (
        *("id", "at_ms", "expert", "run", "round", "version", "arm", "client", "metric", "value", "num_examples"),
        "reporter",
    ),
}
"""(table, form) -> the columns that are covered. A new column needs a new form: entries of the old one still hold."""


def record_of(connection: sa.Connection, table: str, ids: Sequence[int]) -> Event:
    """The entry that covers new rows of a table."""
    rows = _rows(connection, table, FORM, min(ids), max(ids))
    last = max(int(row.at_ms) for row in rows)
    covered = {"first": min(ids), "last": max(ids), "rows": len(rows), "sha256": _digest(rows), "form": FORM}
    return audit.event(last, RECORD, table, **covered)


def check_recorded(connection: sa.Connection, entries: Iterable[tuple[Entry, dict[str, object]]]) -> dict[str, int]:
    """How many rows of each table are what was recorded. entries: those of RECORD with their details, in order.

    Errors: AuditError that names the rows which were altered, removed or added.
    """
    counts = {table: 0 for table, form in COLUMNS if form == FORM}
    ends = dict.fromkeys(counts, 0)
    for entry, detail in entries:
        table, first, last = entry.event.subject, int(str(detail["first"])), int(str(detail["last"]))
        if (extra := _ids_between(connection, table, ends[table], first)) is not None:
            raise AuditError(f"row {extra} of {table} is not in the audit log: it was added by hand")
        rows = _rows(connection, table, int(str(detail["form"])), first, last)
        if len(rows) != detail["rows"]:
            raise AuditError(
                f"rows {first} to {last} of {table}: {len(rows)} are there, audit entry {entry.number} recorded {detail['rows']}"
            )
        if _digest(rows) != detail["sha256"]:
            raise AuditError(f"rows {first} to {last} of {table} were altered after audit entry {entry.number} recorded them")
        counts[table], ends[table] = counts[table] + len(rows), last
    for table, end in ends.items():
        if (extra := _ids_between(connection, table, end, None)) is not None:
            raise AuditError(f"row {extra} of {table} is not in the audit log: it was added by hand, or entries are gone")
    return counts


def _rows(connection: sa.Connection, table: str, form: int, first: int, last: int) -> Sequence[sa.Row[tuple[object, ...]]]:
    c = schema.metadata.tables[table].c
    query = sa.select(*(c[name] for name in COLUMNS[table, form])).where(c.id >= first, c.id <= last).order_by(c.id)
    return connection.execute(query).all()


def _digest(rows: Iterable[sa.Row[tuple[object, ...]]]) -> str:
    found = hashlib.sha256()
    for row in rows:
        found.update(canonical_json({name: _exact(value) for name, value in row._mapping.items()}) + b"\n")
    return found.hexdigest()


def _exact(value: object) -> object:
    """A real number as hexadecimal digits; SQLite does not keep the sign of a zero."""
    return (value + 0.0).hex() if isinstance(value, float) else value


def _ids_between(connection: sa.Connection, table: str, after: int, before: int | None) -> int | None:
    """The smallest id between two others, if there is any."""
    c = schema.metadata.tables[table].c
    where = [c.id > after] + ([c.id < before] if before is not None else [])
    found: int | None = connection.execute(sa.select(sa.func.min(c.id)).where(*where)).scalar_one()
    return found
