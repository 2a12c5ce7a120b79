"""What an operator decides about experts: checked here, then recorded in the ledger's terms. Nothing is decided for a client here."""

from compeft_core.errors import InputError
from compeft_proto.errors import UnknownExpertError
from compeft_server.channels import Move, channel_name, channel_of
from compeft_server.ledger import Ledger


def promote(ledger: Ledger, expert: str, version: int, channel: str, now_ms: int) -> None:
    """Make a channel point at a version, newer or older than where it points. The same again is nothing.

    Errors: InputError for `canary`, which is the newest version always, or no channel; UnknownExpertError.
    """
    known = channel_name(channel)
    if known == "canary":
        raise InputError("canary is the newest version, always: to go back, append one with `compeft experts rollback`")
    check_version(ledger, expert, version)
    moves = ledger.terms.channel_moves(expert)
    if any(m.channel == known for m in moves) and channel_of(known, expert, moves, version).version == version:
        return
    ledger.terms.move_channel(Move(now_ms, expert, known, version))


def check_expert(ledger: Ledger, expert: str) -> None:
    """The expert exists. Errors: UnknownExpertError, which names those there are."""
    if ledger.expert(expert) is None:
        raise UnknownExpertError(f"no expert {expert[:40]!a} here; there are: {', '.join(ledger.experts()) or 'none'}")


def check_version(ledger: Ledger, expert: str, version: int) -> None:
    """The expert has that version. Errors: UnknownExpertError, which names what there is."""
    check_expert(ledger, expert)
    head = ledger.head(expert)
    if not 0 <= version <= head:
        raise UnknownExpertError(f"{expert} has versions 0 to {head}, not {version}")
