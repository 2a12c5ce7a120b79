"""Rotation of the aggregator's key: the old key signs a statement that introduces the new one. The aggregator makes it, clients follow it.

Invariant: a new key is trusted only if a key that was trusted before has signed it. Keys are listed newest first.
"""

from collections.abc import Iterable

from compeft_core.errors import FormatError
from compeft_proto import envelope as dsse
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.v1 import enrolment_pb2 as ep

MAX_HANDOVERS = 1024


def hand_over(old: SigningKey, new: PublicKey, now_ms: int) -> ep.Introduction:
    """A statement signed by `old`: from now on, `new` signs for the aggregator."""
    handover = ep.Handover(old_keyid=old.keyid, new_public_key=new.raw, issued_at_ms=now_ms)
    return ep.Introduction(public_key=old.public.raw, sealed=dsse.seal(old, dsse.HANDOVER, handover))


def follow(trusted: tuple[PublicKey, ...], statements: Iterable[ep.Introduction]) -> tuple[PublicKey, ...]:
    """The trusted keys, newest first, after the handovers that start from the newest trusted key.

    A statement by any other key changes nothing: it is older than what is known here, or a stranger's. Errors: SignatureError,
    FormatError.
    """
    for statement in list(statements)[:MAX_HANDOVERS]:
        if statement.public_key != trusted[0].raw:
            continue
        handover = dsse.open_envelope(statement.sealed, dsse.only(trusted[0]), dsse.HANDOVER)
        if handover.old_keyid != trusted[0].keyid:
            raise FormatError(f"handover names key {handover.old_keyid[:40]!a}, key {trusted[0].keyid} signed it")
        new = PublicKey(handover.new_public_key)
        trusted = (new, *(key for key in trusted if key != new))
    return trusted


def earlier(current: PublicKey, statements: Iterable[ep.Introduction]) -> tuple[PublicKey, ...]:
    """The keys before `current`, newest first, by the aggregator's own record of its handovers."""
    keys = dict.fromkeys(PublicKey(s.public_key) for s in reversed(list(statements)))
    return tuple(key for key in keys if key != current)
