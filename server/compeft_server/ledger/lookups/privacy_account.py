"""An expert's account of differential privacy from the rows of the ledger."""

from compeft_server.ledger.ledger import Ledger
from compeft_server.privacy.account import ExpertAccount, expert_account


def read_account(ledger: Ledger, expert: str) -> ExpertAccount | None:
    """The account of an expert, None if it has no private rounds. Errors: InputError without dp-accounting."""
    history = ledger.private.rounds(expert)
    if not history:
        return None
    data = history[-1][0].data
    return expert_account(expert, history, ledger.private.contributed(data), ledger.private.bare(data, expert))
