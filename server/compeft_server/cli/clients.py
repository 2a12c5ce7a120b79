"""Commands about who may talk to the aggregator: clients add, invite, list, revoke; and rotate-key, for its own key."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from compeft_proto.clock import now_ms
from compeft_proto.name_checks import printable
from compeft_server.admin import members_admin
from compeft_server.admin.members_admin import NewMember
from compeft_server.admin.policy_admin import USUAL, role_of
from compeft_server.app.opened import OpenedData, opened
from compeft_server.cli.options import AsFormat, Data, show
from compeft_server.domain.invitations import valid_ms
from compeft_server.domain.price import Label, check_label
from compeft_server.domain.records import ROLES, Enrolled

RoleName = Annotated[str, typer.Option(help=f"one of {', '.join(ROLES)}")]

Experts = Annotated[
    list[str] | None,
    typer.Option("--expert", help="an expert that it may use as its role does; again for more, '*' for every one"),
]

app = typer.Typer()
clients = typer.Typer(help="Who may talk to the aggregator.", no_args_is_help=True)
app.add_typer(clients, name="clients")


@clients.command("add")
def clients_add(
    name: Annotated[str, typer.Argument(help="a name for people")],
    public_key: Annotated[Path, typer.Argument(help="file with the client's public key")],
    data: Data,
    role: RoleName = "edge",
    expert: Experts = None,
) -> None:
    """Enrol a key that you were handed. `compeft clients invite` spares you the handing.

    Without --expert it may do nothing yet: see `compeft policy allow`.

    Example: compeft clients add berlin-1 berlin-1.pub --expert sentiment --data /var/lib/compeft
    """
    member = NewMember(name, role_of(role), expert or ())
    with OpenedData(data) as there:
        keyid = members_admin.enrol(there.ledger, member, public_key, now_ms())
    typer.echo(f"{name} is enrolled as {member.role} with key {keyid}")
    for one in member.experts:
        typer.echo(f"{name} may {' and '.join(USUAL[member.role])} {one}")


@clients.command("invite")
def clients_invite(
    name: Annotated[str, typer.Argument(help="the new member's name")],
    data: Data,
    role: RoleName = "edge",
    valid: Annotated[str, typer.Option(help="how long it holds: 30m, 24h, 7d; at most 30d")] = "24h",
    address: Annotated[str, typer.Option(help="host:port of `compeft serve --enroll-port`, to put it into the invitation")] = "",
    expert: Experts = None,
    output_format: AsFormat = "text",
) -> None:
    """Print an invitation, once: it lets one new member in. Hand it over by a way that nobody else reads.

    Only a hash of it is kept. A second invitation for the same name takes the first one back. Without --expert the member may do
    nothing yet: see `compeft policy allow`.

    Example: compeft clients invite berlin-1 --expert sentiment --valid 24h --address agg.example:9444 --data /var/lib/compeft
    """
    member, lasts_ms = NewMember(name, role_of(role), expert or ()), valid_ms(valid)
    with OpenedData(data) as there:
        made = members_admin.invite(there.ledger, data, member, address, lasts_ms, now_ms())
    where = "" if address else " --aggregator HOST:ENROLL_PORT"
    head = f"invitation for {name} as {member.role}, once, until {_when(made.expires_at_ms)}; on its machine:"
    values = {
        "invitation": made.text,
        "number": made.number,
        "name": name,
        "role": member.role,
        "expires_at_ms": made.expires_at_ms,
    }
    show(values, f"{head}\ncompeft enroll {made.text}{where} --site DIR", output_format)


@clients.command("simulate")
def clients_simulate(
    sites: Annotated[Path, typer.Argument(help="folder to write: a site folder for each client, and one for the conductor")],
    data: Data,
    count: Annotated[int, typer.Option("--clients", min=1, help="how many simulated clients there are to be")],
    address: Annotated[str, typer.Option("--aggregator", help="host:port where `compeft serve` listens")] = "127.0.0.1:9443",
    expert: Experts = None,
    output_format: AsFormat = "text",
) -> None:
    """Make and enrol the keys of simulated clients, all on this machine. What is there already is kept.

    Without --expert they may do nothing yet: see `compeft policy allow`. An app finds them by
    `compeft_client.flower.simulation.own_or_simulated`; its ServerApp takes the site folder simulated-conductor.

    Example: compeft clients simulate ./sites --clients 10 --expert digits --data /var/lib/compeft
    """
    from compeft_server.admin.simulated_sites import make_sites

    names = make_sites(data, sites.absolute(), count, address, members_admin.checked_experts(expert or ()))
    text = f"{count} simulated clients and a conductor of {address} are enrolled, their site folders lie in {sites}"
    show({"sites": str(sites.absolute()), "members": names}, text, output_format)


@clients.command("list")
def clients_list(data: Data, output_format: AsFormat = "text") -> None:
    """List every key that was enrolled, with its times and the end of its certificate.

    Example: compeft clients list --data /var/lib/compeft --format json
    """
    with opened(data) as there:
        enrolled = there.ledger.membership.enrolled()
    if output_format == "json" or enrolled:
        show([_as_json(e) for e in enrolled], "\n".join(map(_as_text, enrolled)), output_format)


@clients.command("label")
def clients_label(
    name: Annotated[str, typer.Argument(help="the member's name")],
    data: Data,
    tenant: Annotated[str, typer.Option(help="who pays for its bytes")] = "",
    link: Annotated[str, typer.Option(help="the link that it is on, for `compeft report --tariff`")] = "",
) -> None:
    """Say who pays for a member and which link it is on: the report then has the cost of each tenant. Replaces an earlier label.

    Example: compeft clients label berlin-1 --tenant bank-a --link satellite --data /var/lib/compeft
    """
    label = check_label(Label(tenant, link))
    with opened(data) as there:
        members_admin.keyid_of(there.ledger, name)
        there.ledger.labels.put(name, label, now_ms())
    typer.echo(f"{name}: tenant {printable(tenant) or 'none'}, link {printable(link) or 'none'}")


@clients.command("revoke")
def clients_revoke(name: Annotated[str, typer.Argument(help="the member's name")], data: Data) -> None:
    """Refuse a member from now on, its invitations too. What it contributed stays.

    Takes effect with its next message: every one is signed, and a revoked key's certificate opens nothing.

    Example: compeft clients revoke berlin-1 --data /var/lib/compeft
    """
    with opened(data) as there:
        members_admin.revoke(there.ledger, name, now_ms())
    typer.echo(f"{name} is revoked")


@app.command("rotate-key")
def rotate_key(data: Data, output_format: AsFormat = "text") -> None:
    """Make the aggregator's next signing key. It is taken up when `compeft serve` starts again.

    The old key introduces the new one in a signed statement, which clients follow by themselves; what it signed still holds.

    Example: compeft rotate-key --data /var/lib/compeft && systemctl restart compeft-aggregator
    """
    with opened(data) as there:
        before, after = members_admin.make_next_key(there.ledger, data, now_ms())
    show({"keyid": before, "next_keyid": after}, f"key {after} follows {before} when `compeft serve` starts again", output_format)


def _as_json(e: Enrolled) -> dict[str, object]:
    return {
        "name": e.name,
        "role": e.role,
        "keyid": e.keyid,
        "revoked": e.revoked_at_ms is not None,
        "enrolled_at_ms": e.enrolled_at_ms,
        "revoked_at_ms": e.revoked_at_ms,
        "replaced_by": e.replaced_by or None,
        "certificate_expires_at_ms": e.certificate_expires_at_ms,
    }


def _as_text(e: Enrolled) -> str:
    certificate = f"  certificate until {_when(e.certificate_expires_at_ms)}" if e.certificate_expires_at_ms else ""
    ended = f"replaced by {e.replaced_by}" if e.replaced_by else "revoked"
    end = f"  {ended} {_when(e.revoked_at_ms)}" if e.revoked_at_ms is not None else certificate
    return f"{printable(e.name):<24} {e.role:<10} {e.keyid}  enrolled {_when(e.enrolled_at_ms)}{end}"


def _when(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")
