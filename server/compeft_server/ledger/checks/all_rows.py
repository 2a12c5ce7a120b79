"""Every check of this folder at once, in one look at the database."""

import json
from collections.abc import Sequence

import sqlalchemy as sa

from compeft_server.ledger.audit import AuditError, Entry
from compeft_server.ledger.checks.keys_replayed import check_keys
from compeft_server.ledger.checks.recorded_rows import RECORD, check_recorded
from compeft_server.ledger.checks.rows_of_entries import check_rows


def check_all(connection: sa.Connection, entries: Sequence[Entry]) -> dict[str, int]:
    """How many rows of each table agree with the log of `entries`. Errors: AuditError that names the first which does not."""
    told = [(entry, _detail(entry)) for entry in entries]
    keys = check_keys(connection, told)
    recorded = check_recorded(connection, [(entry, detail) for entry, detail in told if entry.event.action == RECORD])
    return {"keys": keys, **recorded, **check_rows(connection, told)}


def _detail(entry: Entry) -> dict[str, object]:
    found = json.loads(entry.event.detail)
    if not isinstance(found, dict):
        raise AuditError(f"audit entry {entry.number} has details that are not an object")
    return found
