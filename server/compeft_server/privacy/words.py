"""The account in words and as JSON, for the command and the report."""

import math
from dataclasses import asdict

from compeft_server.privacy.account import ExpertAccount


def account_json(account: ExpertAccount) -> dict[str, object]:
    """All figures; an infinite epsilon is null, JSON has no number for it."""

    def finite(values: list[tuple[str, object]]) -> dict[str, object]:
        return {name: None if value == math.inf else value for name, value in values}

    return asdict(account, dict_factory=finite)


def account_line(account: ExpertAccount) -> str:
    """The account in one line; names are those of the ledger, not yet made printable."""
    bound = "no bound" if account.bound is None else f"bound {account.bound:g}, {account.rounds_left} rounds left"
    data = f" on data {account.data}" if account.data else ""
    spent = f"epsilon {account.epsilon:.4g} at delta {account.delta:g}"
    return f"{account.expert}{data}: {spent}, {bound}, {len(account.rounds)} private rounds"
