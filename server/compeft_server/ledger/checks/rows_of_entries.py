"""Rows that have an audit entry each: what the log says must be there is there, and nothing else is.

A *fact* is (action, time, subject, details): of an entry, with the details that a row repeats; of a row, built from its columns. Both sides
must have the same facts, each as often.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from compeft_server.ledger import schema
from compeft_server.ledger.audit import AuditError, Entry

Fact = tuple[str, int, str, str]
Row = sa.Row[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Kept:
    """How the rows of a table repeat their entries. details: (name in the entry, column), by action."""

    table: sa.Table
    action: Callable[[Row], str]
    at: str
    subject: str
    details: tuple[tuple[str, str], ...]
    actions: tuple[str, ...]
    where: sa.ColumnElement[bool] | None = None


def _always(action: str) -> Callable[[Row], str]:
    return lambda _: action


KEPT = (
    Kept(
        schema.rules,
        lambda row: str(row.effect),
        "at_ms",
        "expert",
        (("who", "who"), ("may", "action"), ("from_version", "from_version"), ("until_ms", "until_ms"), ("channel", "channel")),
        ("allow", "deny", "clear"),
    ),
    Kept(
        schema.channel_moves,
        _always("promote"),
        "at_ms",
        "expert",
        (("channel", "channel"), ("version", "version")),
        ("promote",),
    ),
    Kept(
        schema.retirements,
        lambda row: "retire" if row.retired else "unretire",
        "at_ms",
        "expert",
        (("version", "version"),),
        ("retire", "unretire"),
    ),
    Kept(
        schema.refusals,
        _always("refuse"),
        "at_ms",
        "expert",
        (("peer", "peer"), ("code", "code"), ("reason", "reason")),
        ("refuse",),
    ),
    Kept(schema.rounds, _always("open round"), "opened_at_ms", "expert", (("run", "run"), ("round", "round")), ("open round",)),
    Kept(
        schema.rounds,
        _always("close round"),
        "closed_at_ms",
        "expert",
        (("run", "run"), ("round", "round")),
        ("close round",),
        schema.rounds.c.closed_at_ms.is_not(None),
    ),
    Kept(
        schema.submissions,
        _always("accept"),
        "accepted_at_ms",
        "expert",
        (("round", "round"), ("keyid", "keyid"), ("update", "update_digest")),
        ("accept",),
    ),
    Kept(
        schema.versions,
        _always("publish"),
        "created_at_ms",
        "expert",
        (("version", "version"), ("state", "state_digest")),
        ("publish",),
    ),
    Kept(schema.fetches, _always("fetch"), "at_ms", "expert", (("version", "version"), ("keyid", "keyid")), ("fetch",)),
    Kept(
        schema.invitations, _always("invite"), "created_at_ms", "name", (("role", "role"), ("invitation", "number")), ("invite",)
    ),
)


def check_rows(connection: sa.Connection, entries: Iterable[tuple[Entry, dict[str, object]]]) -> dict[str, int]:
    """How many rows of each table are what their entries say. Errors: AuditError that names a row or an entry without the other."""
    said: dict[str, Counter[Fact]] = {}
    names = {action: [name for name, _ in kept.details] for kept in KEPT for action in kept.actions}
    for entry, detail in entries:
        if (action := entry.event.action) in names:
            fact = (action, entry.event.at_ms, entry.event.subject, _details({name: detail.get(name) for name in names[action]}))
            said.setdefault(action, Counter())[fact] += 1
    counts: Counter[str] = Counter()
    for kept in KEPT:
        found = Counter(_facts(connection, kept))
        wanted = sum((said.get(action, Counter()) for action in kept.actions), Counter[Fact]())
        _same(kept.table.name, found, wanted)
        counts[kept.table.name] = max(counts[kept.table.name], found.total())
    return dict(counts)


def _facts(connection: sa.Connection, kept: Kept) -> Iterator[Fact]:
    columns = list(kept.table.c)
    query = sa.select(*columns) if kept.where is None else sa.select(*columns).where(kept.where)
    for row in connection.execution_options(yield_per=1000).execute(query):
        of = row._mapping
        yield kept.action(row), of[kept.at], of[kept.subject], _details({name: of[column] for name, column in kept.details})


def _details(values: dict[str, object]) -> str:
    """One text of these; what an entry leaves out because it says nothing is left out of both."""
    shown = {name: value.hex() if isinstance(value, bytes) else value for name, value in values.items()}
    return json.dumps({name: value for name, value in shown.items() if value not in (None, 0, "")}, sort_keys=True)


def _same(table: str, found: Counter[Fact], wanted: Counter[Fact]) -> None:
    for fact in found - wanted:
        raise AuditError(f"{table} has a row that no audit entry describes: {_words(fact)}")
    for fact in wanted - found:
        raise AuditError(f"{table} lacks the row of an audit entry, or it was altered: {_words(fact)}")


def _words(fact: Fact) -> str:
    action, at_ms, subject, details = fact
    return f"{action} {subject[:60]!a} at {at_ms} ms {ascii(details)[1:-1][:160]}"
