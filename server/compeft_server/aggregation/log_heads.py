"""Signed heads of the audit log for the aggregator's answers, and the newest of them in a file of the data directory.

    log-head.txt    the newest head that was given to anybody, as a C2SP tlog-checkpoint

A log that does not begin with what that file says is not served: a ledger was emptied, put back or exchanged, while clients know better.
"""

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from compeft_core.errors import InputError
from compeft_proto.errors import ForkedLogError, RewoundLogError
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.log_head import SignedHead, check_length, head_to_proto, origin_of, read_note, sign_head
from compeft_proto.merkle_log import places, proof_ranges, root
from compeft_proto.site_layout import HEAD_FILE
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.ledger.ledger import Ledger
from compeft_server.private_files import read_file

EVERY_S = 1.0
"""How often the file is written at most."""


class LogHeads:
    """Heads of one ledger's log, signed by `key`. earlier: keys before it, newest first. data: folder for the newest head, if any."""

    def __init__(self, key: SigningKey, ledger: Ledger, earlier: Sequence[PublicKey] = (), data: Path | None = None) -> None:
        self._key, self._ledger = key, ledger
        self._origin = origin_of((key.public, *earlier)[-1])
        self._file = data / HEAD_FILE if data is not None else None
        self._newest: SignedHead | None = None
        self._lock, self._wrote = threading.Lock(), -EVERY_S

    def since(self, known: int) -> pb.LogHead:
        """The head now, with the proof that it grew from one of `known` entries (0: none is asked for). Errors: RewoundLogError."""
        size = self._ledger.log_size()
        check_length(known, size)
        ranges = proof_ranges(known, size)
        subtrees = self._ledger.log_subtrees(place for entries in ranges for place in places(entries))
        return head_to_proto(self._signed(size), [root(entries, subtrees) for entries in ranges])

    def close(self) -> None:
        """Keep the newest head."""
        with self._lock:
            self._keep(at_once=True)

    def _signed(self, size: int) -> SignedHead:
        """The head of this size. Two heads of one size are the same: the log only grows."""
        with self._lock:
            if self._newest is None or self._newest.size != size:
                made = sign_head(self._key, self._origin, size, root_at(self._ledger, size))
                if self._newest is not None and size < self._newest.size:
                    return made
                self._newest = made
                self._keep(at_once=False)
            return self._newest

    def _keep(self, at_once: bool) -> None:
        if self._file is None or self._newest is None or (not at_once and time.monotonic() - self._wrote < EVERY_S):
            return
        self._wrote = time.monotonic()
        beside = self._file.with_name(f".{HEAD_FILE}.{os.getpid()}")
        with suppress(OSError):  # a full disk: the next one is written
            beside.write_bytes(self._newest.note(self._key.public))
            beside.replace(self._file)


def root_at(ledger: Ledger, size: int) -> bytes:
    """The root over the first `size` entries. Errors: AuditError if nodes are gone."""
    return root((0, size), ledger.log_subtrees(places((0, size))))


def check_against(ledger: Ledger, note: bytes, keys: Sequence[PublicKey], what: str) -> SignedHead:
    """The head in a checkpoint of this aggregator, if the ledger's log begins with it.

    Errors: RewoundLogError, ForkedLogError; SignatureError, FormatError for another's checkpoint; AuditError.
    """
    head, size = read_note(note, keys), ledger.log_size()
    if size < head.size:
        raise RewoundLogError(
            f"{what} has seen {head.size} entries of the audit log, the ledger has {size}: it was rewound or emptied"
        )
    if root_at(ledger, head.size) != head.root:
        raise ForkedLogError(
            f"{what} has seen other entries than the first {head.size} of the ledger's audit log: it was rewritten"
        )
    return head


def check_own_head(data: Path, ledger: Ledger, keys: Sequence[PublicKey]) -> None:
    """Whether the ledger still has what was signed before. Errors: InputError that says the way out."""
    path = data / HEAD_FILE
    if not path.exists():
        return
    try:
        check_against(ledger, read_file(path), keys, str(path))
    except (RewoundLogError, ForkedLogError) as error:
        raise InputError(
            f"{error}; put the right ledger back, or remove {path} if this one is meant: clients that have seen more will refuse it"
        ) from error
