"""`compeft privacy`: the account of an expert's private rounds."""

import typer

from compeft_server.admin.privacy_account import account_of
from compeft_server.cli.options import AsFormat, Data, ExpertName, show
from compeft_server.data_directory import existing, open_ledger
from compeft_server.privacy.account import ExpertAccount, MemberAccount
from compeft_server.privacy.words import account_json, account_line
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
    show(account_json(found), _as_text(found), output_format)


def _as_text(account: ExpertAccount) -> str:
    lines = [printable(account_line(account)), *map(_member_line, account.members)]
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
