"""`compeft privacy`: the account of an expert's private rounds."""

import math
from dataclasses import asdict

import typer

from compeft_server.admin.privacy_account import account_of
from compeft_server.cli.options import AsFormat, Data, ExpertName, show
from compeft_server.data_directory import existing, open_ledger
from compeft_server.privacy.account import ExpertAccount, MemberAccount
from compeft_server.reports.formats.text import printable

app = typer.Typer()


@app.command("privacy")
def privacy(expert: ExpertName, data: Data, output_format: AsFormat = "text") -> None:
    """Show epsilon so far of each member that contributed to an expert, and how many rounds its bound leaves.

    Examples: compeft privacy triage --data /var/lib/compeft; compeft privacy triage --data /var/lib/compeft --format json
    """
    ledger = open_ledger(existing(data))
    found = account_of(ledger, expert)
    ledger.close()
    show(_as_json(found), _as_text(found), output_format)


def _as_json(account: ExpertAccount) -> dict[str, object]:
    """Infinity as null: JSON has no number for it."""

    def finite(values: list[tuple[str, object]]) -> dict[str, object]:
        return {name: None if value == math.inf else value for name, value in values}

    return asdict(account, dict_factory=finite)


def _as_text(account: ExpertAccount) -> str:
    bound = "no bound" if account.bound is None else f"bound {account.bound:g}, {account.rounds_left} rounds left"
    data = f" on data {printable(account.data)}" if account.data else ""
    head = f"{account.expert}{data}: epsilon {account.epsilon:.4g} at delta {account.delta:g}, {bound}, "
    head += f"{len(account.rounds)} private rounds"
    lines = [head, *map(_member_line, account.members)]
    for r in account.rounds:
        led = "open" if r.version is None else f"version {r.version}"
        lines.append(
            f"  run {printable(r.run)} round {r.round}: {r.where}, noise {r.noise_multiplier:g} x clip {r.clip:g}, "
            f"asked {r.asked}, answered {r.answered}, {led}"
        )
    return "\n".join(lines)


def _member_line(member: MemberAccount) -> str:
    notes = [f"{member.rounds} rounds"]
    notes += [f"{member.elsewhere} of them of other experts"] if member.elsewhere else []
    notes += [f"{member.bare} updates without noise"] if member.bare else []
    notes += [f"{member.rounds_left} left"] if member.rounds_left is not None else []
    return f"  {printable(member.member)}: epsilon {member.epsilon:.4g}, {', '.join(notes)}"
