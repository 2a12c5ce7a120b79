"""Who is enrolled, by the audit log alone: its entries are replayed and the table of keys must come out."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import sqlalchemy as sa

from compeft_proto.keys import PublicKey
from compeft_server.ledger import schema
from compeft_server.ledger.audit import AuditError, Entry


@dataclass(frozen=True, slots=True)
class _Key:
    """A row of the table of keys, but for the public half: that is held against the keyid, its digest."""

    name: str
    role: str
    enrolled_at_ms: int
    revoked_at_ms: int | None = None
    succeeds: str | None = None


def check_keys(connection: sa.Connection, entries: Iterable[tuple[Entry, dict[str, object]]]) -> int:
    """How many keys are what the log says. Errors: AuditError that names the member whose row is another."""
    wanted: dict[str, _Key] = {}
    for entry, detail in entries:
        _replay(wanted, entry, detail)
    found = connection.execute(sa.select(schema.keys)).all()
    if found and not wanted:
        raise AuditError(f"{len(found)} keys are enrolled, the audit log has no entry of any: it was emptied")
    for row in found:
        here = _Key(row.name, row.role, row.enrolled_at_ms, row.revoked_at_ms, row.succeeds)
        if PublicKey(row.public).keyid != row.keyid:
            raise AuditError(f"key {row.keyid} of member {row.name[:40]!a} is another public key: the row was altered")
        if row.keyid not in wanted:
            raise AuditError(f"key {row.keyid} of member {row.name[:40]!a} is enrolled without an audit entry")
        if wanted[row.keyid] != here:
            raise AuditError(
                f"key {row.keyid} of member {row.name[:40]!a} is {_words(here)}; the audit log says {_words(wanted[row.keyid])}"
            )
    if gone := set(wanted) - {row.keyid for row in found}:
        keyid = min(gone)
        raise AuditError(f"key {keyid} of member {wanted[keyid].name[:40]!a} is in the audit log, but its row is gone")
    return len(found)


def _replay(keys: dict[str, _Key], entry: Entry, detail: dict[str, object]) -> None:
    name, at_ms = entry.event.subject, entry.event.at_ms
    if entry.event.action == "enrol":
        keys.setdefault(str(detail["keyid"]), _Key(name, str(detail["role"]), at_ms))
    elif entry.event.action == "revoke":
        for keyid, key in keys.items():
            if key.name == name and key.revoked_at_ms is None:
                keys[keyid] = replace(key, revoked_at_ms=at_ms)
    elif entry.event.action == "renew" and "new_keyid" in detail:
        old = str(detail["keyid"])
        role = keys[old].role if old in keys else "unknown"
        keys[str(detail["new_keyid"])] = _Key(name, role, at_ms, succeeds=old)
        if old in keys:
            keys[old] = replace(keys[old], revoked_at_ms=at_ms)


def _words(key: _Key) -> str:
    state = "in force" if key.revoked_at_ms is None else f"revoked at {key.revoked_at_ms} ms"
    return f"{key.name[:40]!a}, {key.role}, enrolled at {key.enrolled_at_ms} ms, {state}, after {key.succeeds or 'none'}"
