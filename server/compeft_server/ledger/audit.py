"""The audit log: every decision about who gets in and what is published, chained by SHA-256 and the leaves of one Merkle tree.

An entry is written in the transaction of what it is about, so neither exists without the other; and transactions that write one
take turns, also those of other processes on the same database: a decision sees every decision before it. Whoever keeps the newest hash,
or a signed head of the tree, elsewhere can tell later that nothing before it was altered, dropped or inserted.

Beside its hash, an entry holds `nodes`: the hashes of the complete subtrees that end with it (`merkle_log.completed`), smallest first. So a
root or a consistency proof takes a few rows, whatever the length of the log; two hashes an entry on average.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from compeft_core.errors import CompeftError
from compeft_proto.merkle_log import EMPTY_ROOT, HASH_BYTES, Place, completed, leaf_hash, left_of, node_hash, root
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
_CHAIN = (
    sa.update(_table)
    .where(_table.c.id == sa.bindparam("number"))
    .values(hash=sa.bindparam("chained"), nodes=sa.bindparam("ends_here"))
)
_NODES = sa.select(_table.c.id, _table.c.nodes).where(_table.c.id.in_(sa.bindparam("numbers", expanding=True)))
SIZE = sa.select(sa.func.coalesce(sa.func.max(_table.c.id), 0))
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
    nodes: bytes = b""


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
    ends_here = new_nodes(number, happened, subtrees(connection, [left_of(place) for place in list(completed(number))[:-1]]))
    chained = link(before or START, happened)
    connection.execute(_CHAIN, {"number": number, "chained": chained, "ends_here": b"".join(ends_here)})


def subtrees(connection: sa.Connection, wanted: Iterable[Place]) -> dict[Place, bytes]:
    """The hashes of these complete subtrees. Errors: AuditError if an entry that holds one is gone."""
    ends = {(level, index): (index + 1) << level for level, index in wanted}
    if not ends:
        return {}
    nodes = {row.id: row.nodes for row in connection.execute(_NODES, {"numbers": sorted(set(ends.values()))})}
    found = {place: nodes.get(end, b"")[place[0] * HASH_BYTES : (place[0] + 1) * HASH_BYTES] for place, end in ends.items()}
    if torn := [end for place, end in ends.items() if len(found[place]) != HASH_BYTES]:
        raise AuditError(f"audit entry {min(torn)} is missing or was altered: see `compeft audit verify`")
    return found


def new_nodes(number: int, happened: Event, left: Mapping[Place, bytes]) -> list[bytes]:
    """The hashes of the complete subtrees that end with an entry, smallest first. left: those beside them."""
    hashes = [leaf_hash(_bytes(happened))]
    for place in list(completed(number))[:-1]:
        hashes.append(node_hash(left[left_of(place)], hashes[-1]))
    return hashes


def link(before: bytes, happened: Event) -> bytes:
    """The hash of an entry from that of the one before it."""
    return hashlib.sha256(before + _bytes(happened)).digest()


def check(entries: Iterable[Entry]) -> bytes:
    """The hash of the newest entry, if the whole chain and tree hold. Errors: AuditError that names the first entry that does not."""
    before, left = START, Subtrees()
    for number, entry in enumerate(entries, start=1):
        if entry.number != number:
            raise AuditError(f"audit entry {number} is missing, the next one is {entry.number}")
        before = link(before, entry.event)
        if before != entry.hash or b"".join(left.add(number, entry.event)) != entry.nodes:
            raise AuditError(
                f"audit entry {number} ({entry.event.action} {entry.event.subject[:40]!a}) was altered after it was written"
            )
    return before


class Subtrees:
    """The complete subtrees of a log that is read from its start: those that the next entries can need, by place."""

    def __init__(self) -> None:
        self._size, self._kept = 0, dict[Place, bytes]()

    def add(self, number: int, happened: Event) -> list[bytes]:
        """The hashes of the subtrees that end with the next entry."""
        found = new_nodes(number, happened, self._kept)
        ends = list(completed(number))
        for place in ends[:-1]:
            del self._kept[left_of(place)]
        self._kept[ends[-1]], self._size = found[-1], number
        return found

    @property
    def root(self) -> bytes:
        """The root over all entries so far."""
        return root((0, self._size), self._kept) if self._size else EMPTY_ROOT


def _bytes(happened: Event) -> bytes:
    fields = {"at_ms": happened.at_ms, "action": happened.action, "subject": happened.subject, "detail": happened.detail}
    return canonical_json(fields)
