"""A federation that ran before there was a policy goes on; a new one begins with default deny."""

import sqlite3
from pathlib import Path

from compeft_server.domain.policy import standing
from compeft_server.ledger.audit import check
from compeft_server.ledger.ledger import Ledger

DUMP = Path(__file__).parents[1] / "ledger" / "ledger-0.1.0.sql"


def test_members_of_before_keep_what_their_roles_could_do(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    connection.executescript(DUMP.read_text())
    connection.close()
    ledger = Ledger(tmp_path / "ledger.sqlite")
    rules = {(r.expert, r.who, r.action, r.effect) for r in standing(ledger.terms.rules())}
    roles = {"edge": ("publish", "fetch"), "conductor": ("publish", "fetch"), "reader": ("fetch",)}
    assert rules == {("*", f"role:{role}", action, "allow") for role, actions in roles.items() for action in actions}
    check(ledger.audit_entries())
    ledger.close()


def test_a_new_ledger_has_no_rules(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    assert ledger.terms.rules() == []
    ledger.close()
