"""The audit log: every decision about who gets in and what is published, each entry chained to the one before it by SHA-256.

An entry is written in the transaction of what it is about, so neither exists without the other; and transactions that write one
take turns, also those of other processes on the same database: a decision sees every decision before it. Whoever keeps the newest hash
elsewhere can tell later that nothing before it was altered, dropped or inserted.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from compeft_core.errors import CompeftError
from compeft_proto.round_task import canonical_json
from compeft_server.ledger import schema
from compeft_server.ledger.database import take_turn

START = bytes(32)
_table, _before = schema.audit, schema.audit.alias("before")
_INSERT = sa.insert(_table).values(id=sa.select(sa.func.coalesce(sa.func.max(_table.c.id), 0) + 1).scalar_subquery())
_NEWEST = (
    sa.select(_table.c.id, _before.c.hash)
    .join_from(_table, _before, _before.c.id == _table.c.id - 1, isouter=True)
    .order_by(_table.c.id.desc())
    .limit(1)
)
_CHAIN = sa.update(_table).where(_table.c.id == sa.bindparam("number")).values(hash=sa.bindparam("chained"))
"""Built once: building a statement takes longer than running it."""


class AuditError(CompeftError):
    """The audit log is not what was written."""

    code = "audit_broken"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was decided: `action` on `subject`; `detail` is canonical JSON."""

    at_ms: int
    action: str
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class Entry:
    """An event in its place. hash = SHA-256(hash of the entry before || event as canonical JSON); the first follows 32 zero bytes."""

    number: int
    event: Event
    hash: bytes


def event(at_ms: int, action: str, subject: str, **detail: object) -> Event:
    """An event with these details, which must be JSON."""
    return Event(at_ms, action, subject, canonical_json(detail).decode())


def append(connection: sa.Connection, happened: Event) -> None:
    """Add to the chain, first thing in the caller's transaction: it takes the turn that keeps every other decision out until the
    transaction ends (on SQLite the insert does, by being a write). Numbers come from the chain itself, so none is ever left out.
    """
    take_turn(connection)
    row = {"at_ms": happened.at_ms, "action": happened.action, "subject": happened.subject, "detail": happened.detail}
    connection.execute(_INSERT, row | {"hash": START})
    number, before = connection.execute(_NEWEST).one()
    connection.execute(_CHAIN, {"number": number, "chained": link(before or START, happened)})


def link(before: bytes, happened: Event) -> bytes:
    """The hash of an entry from that of the one before it."""
    fields = {"at_ms": happened.at_ms, "action": happened.action, "subject": happened.subject, "detail": happened.detail}
    return hashlib.sha256(before + canonical_json(fields)).digest()


def check(entries: Iterable[Entry]) -> bytes:
    """The hash of the newest entry, if the whole chain holds. Errors: AuditError that names the first entry that does not."""
    before = START
    for number, entry in enumerate(entries, start=1):
        if entry.number != number:
            raise AuditError(f"audit entry {number} is missing, the next one is {entry.number}")
        before = link(before, entry.event)
        if before != entry.hash:
            raise AuditError(
                f"audit entry {number} ({entry.event.action} {entry.event.subject[:40]!a}) was altered after it was written"
            )
    return before
