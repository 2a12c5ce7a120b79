"""Holding a ledger against its own audit log, and both against what clients remember: `compeft audit verify`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compeft_core.errors import InputError
from compeft_proto.keys import PublicKey
from compeft_proto.log_head import SignedHead
from compeft_proto.site_layout import FILES, HEAD_FILE
from compeft_server.aggregation.log_heads import check_against, root_at
from compeft_server.ledger.audit import AuditError, check
from compeft_server.ledger.ledger import Ledger
from compeft_server.private_files import read_file


@dataclass(frozen=True, slots=True)
class AuditState:
    """A log that holds: its entries, the hash of the newest, the root over all, and how many rows of each table agree with it."""

    entries: int
    hash: bytes
    root: bytes
    rows: dict[str, int]


READS = 10
"""Most times that a log that grows meanwhile is read again."""


def verify_log(ledger: Ledger) -> AuditState:
    """Check every entry, and the rows of the other tables against them. Errors: AuditError that names what was altered.

    An aggregator that serves meanwhile may record a row between the two reads, with its entry: then both are read again.
    """
    for _ in range(READS):
        entries = ledger.audit_entries()
        newest = check(entries)
        try:
            rows = ledger.check_rows(entries)
        except AuditError:
            if len(ledger.audit_entries()) == len(entries):
                raise
        else:
            break
    else:
        rows = ledger.check_rows(entries)
    return AuditState(len(entries), newest, root_at(ledger, len(entries)), rows)


def verify_against(ledger: Ledger, places: Iterable[Path], keys: Sequence[PublicKey]) -> list[tuple[Path, SignedHead]]:
    """The heads that sites remember, each held against the log. A place is a site folder, a state folder, or a checkpoint file.

    Errors: InputError if a place has no head; RewoundLogError, ForkedLogError; SignatureError if another aggregator signed it.
    """
    return [(path, check_against(ledger, read_file(path), keys, str(place))) for place in places for path in [_note_of(place)]]


def _note_of(place: Path) -> Path:
    found = [path for path in (place / FILES["state-dir"] / HEAD_FILE, place / HEAD_FILE, place) if path.is_file()]
    if not found:
        raise InputError(
            f"{place} remembers no head of an audit log: it has no {FILES['state-dir']}/{HEAD_FILE}; sync there first"
        )
    return found[0]
