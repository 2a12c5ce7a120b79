"""The account of an expert's private rounds, for its operator."""

from compeft_proto.errors import UnknownExpertError
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.lookups.privacy_account import read_account
from compeft_server.privacy.account import ExpertAccount


def account_or_none(ledger: Ledger, expert: str) -> ExpertAccount | None:
    """The account of an expert, None without private rounds."""
    return read_account(ledger, expert)


def account_of(ledger: Ledger, expert: str) -> ExpertAccount:
    """The account of an expert. Errors: UnknownExpertError for an unknown expert, or one without private rounds."""
    if expert not in ledger.experts():
        raise UnknownExpertError(f"no expert {expert[:40]!a} here; there are: {', '.join(ledger.experts()) or 'none'}")
    found = account_or_none(ledger, expert)
    if found is None:
        raise UnknownExpertError(f"{expert} has no private rounds: start them with Plan(privacy=ClientPrivacy(...))")
    return found
