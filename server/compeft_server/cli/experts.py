"""Commands about experts as a whole, run on the aggregator's machine: list, show, promote, retire. Each calls one function and prints."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from compeft_proto.clock import now_ms
from compeft_server.admin import policy_admin
from compeft_server.admin.expert_card import list_experts, read_card, to_json, to_text
from compeft_server.app.opened import opened
from compeft_server.cli.options import AsFormat, Data, ExpertName, show

experts = typer.Typer(help="Experts and their versions.", no_args_is_help=True)


@experts.command("list")
def experts_list(data: Data, output_format: AsFormat = "text") -> None:
    """List experts with their newest version and size, retired ones too.

    Example: compeft experts list --data /var/lib/compeft
    """
    with opened(data) as there:
        rows = list_experts(there.ledger)
    if output_format == "json":
        typer.echo(json.dumps([asdict(row) for row in rows]))
        return
    for row in rows:
        mark = "  retired" if row.retired else ""
        typer.echo(f"{row.expert:<32} version {row.version:<6} {row.parameters:>14,} parameters{mark}")


@experts.command("show")
def experts_show(name: ExpertName, data: Data, output_format: AsFormat = "text") -> None:
    """Show one expert: base model, layout, versions, channels, policy, sizes, and who contributed.

    Example: compeft experts show sentiment --data /var/lib/compeft
    """
    with opened(data) as there:
        card = read_card(there.ledger, there.log, there.versions.lineage(name), name)
    show(to_json(card), to_text(card), output_format)


@experts.command("retire")
def experts_retire(
    name: ExpertName,
    data: Data,
    version: Annotated[int | None, typer.Option(help="only this version; the whole expert by default")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="take a retirement back")] = False,
    output_format: AsFormat = "text",
) -> None:
    """Retire an expert, or one version: nobody but its owner submits to it or fetches it. Nothing is deleted.

    Examples: compeft experts retire sentiment --data /var/lib/compeft;
    compeft experts retire sentiment --version 3 --undo --data /var/lib/compeft
    """
    with opened(data) as there:
        policy_admin.retire(there.ledger, name, version, now_ms(), undo)
    values = {"expert": name, "version": version, "retired": not undo}
    what = name if version is None else f"{name} version {version}"
    typer.echo(json.dumps(values) if output_format == "json" else f"{what} is {'no longer ' if undo else ''}retired")


@experts.command("promote")
def experts_promote(
    name: ExpertName,
    version: Annotated[int, typer.Argument(help="the version that the channel shall point at; an older one rolls it back")],
    data: Data,
    channel: Annotated[str, typer.Option(help="the channel to move; canary is the newest version by itself")] = "stable",
    output_format: AsFormat = "text",
) -> None:
    """Make a channel point at a version. Clients that follow it get it at their next sync; going back they must be told to.

    Example: compeft experts promote sentiment 3 --channel stable --data /var/lib/compeft
    """
    with opened(data) as there:
        policy_admin.promote(there.ledger, name, version, channel, now_ms())
    values = {"expert": name, "channel": channel, "version": version}
    typer.echo(json.dumps(values) if output_format == "json" else f"{name}: {channel} is version {version}")
