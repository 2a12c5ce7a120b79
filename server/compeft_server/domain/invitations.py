"""Who may come in by invitation: the rules, as plain functions that do no I/O. Storage is membership.py, gRPC enrolment_service.py.

Invariant: a stranger learns nothing. Whatever is wrong with an invitation, the answer is the same line; the reason goes to the audit
log, where the operator finds it.
"""

import hashlib
import hmac
import re
from collections import Counter

from compeft_core.errors import InputError
from compeft_proto.errors import BusyError, ForbiddenError
from compeft_proto.invitation import SECRET_BYTES
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_server.domain.records import Invited

MAX_VALID_MS = 30 * 24 * 3600 * 1000
UNITS_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
NOT_GOOD = "this invitation is not good: it was mistyped, has expired, or was used or withdrawn; ask the operator for a new one"


def valid_ms(text: str) -> int:
    """How long an invitation holds, such as 30m, 24h or 7d, in milliseconds; at most 30 days. Errors: InputError."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    if not found or int(found[1]) * UNITS_MS[found[2]] > MAX_VALID_MS:
        raise InputError(f"{text[:20]!a} is not a time that an invitation may hold: write 30m, 24h or 7d, at most 30d")
    return int(found[1]) * UNITS_MS[found[2]]


def fault(invited: Invited | None, request: ep.EnrolmentRequest, now_ms: int) -> str:
    """What is wrong with an invitation, in a word for the audit log; empty if it is good.

    The secret is compared in constant time, and also where there is nothing to compare it with. The key that used an invitation may
    use it again until it expires: its first answer may have been lost.
    """
    digest = hashlib.sha256(request.secret[:SECRET_BYTES]).digest()
    same = hmac.compare_digest(digest, invited.secret_digest if invited else bytes(32))
    if invited is None or not same or len(request.secret) != SECRET_BYTES:
        return "unknown" if invited is None else "wrong secret"
    if invited.withdrawn:
        return "withdrawn"
    if now_ms > invited.expires_at_ms:
        return "expired"
    return "used" if invited.used_by not in ("", request.keyid) else ""


def admit_key(keyid: str, claimed: str) -> None:
    """The request names the key that sealed it. Errors: ForbiddenError."""
    if keyid != claimed:
        raise ForbiddenError(f"request names key {claimed[:40]!a}, key {keyid} sealed it")


class Throttle:
    """At most `each` attempts of one host and `total` of all within `window_ms`. Not thread-safe: hold a lock around it."""

    def __init__(self, each: int = 10, total: int = 60, window_ms: int = 60_000) -> None:
        self._each, self._total, self._window_ms = each, total, window_ms
        self._since_ms = 0
        self._made: Counter[str] = Counter()

    def take(self, host: str, now_ms: int) -> None:
        """Count one attempt. Errors: BusyError, which says how long to wait."""
        if not 0 <= now_ms - self._since_ms < self._window_ms:
            self._since_ms, self._made = now_ms, Counter()
        if self._made[host] >= self._each or self._made.total() >= self._total:
            wait_s = (self._since_ms + self._window_ms - now_ms + 999) // 1000
            raise BusyError(f"too many attempts to enrol or renew: try again in {wait_s} s")
        self._made[host] += 1
