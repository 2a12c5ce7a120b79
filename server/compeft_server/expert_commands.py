"""Commands about experts as a whole, run on the aggregator's machine: list, promote. Each calls one function and prints."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from compeft_server import curating
from compeft_server.serving import now_ms, open_ledger

AsFormat = Annotated[Literal["text", "json"], typer.Option("--format", help="text for people, json for programs")]
Data = Annotated[Path, typer.Option(help="the aggregator's data directory")]
Name = Annotated[str, typer.Argument(help="name of the expert")]

experts = typer.Typer(help="Experts and their versions.", no_args_is_help=True)


@experts.command("list")
def experts_list(data: Data, format: AsFormat = "text") -> None:  # the option's name
    """List experts with their newest version and size.

    Example: compeft experts list --data /var/lib/compeft
    """
    ledger = open_ledger(data)
    found = [(name, ledger.head(name), ledger.expert(name)) for name in ledger.experts()]
    rows = [{"expert": name, "version": head, "parameters": e.layout.size} for name, head, e in found if e is not None]
    if format == "json":
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['expert']:<32} version {row['version']:<6} {row['parameters']:>14,} parameters")


@experts.command("promote")
def experts_promote(
    name: Name,
    version: Annotated[int, typer.Argument(help="the version that the channel shall point at; an older one rolls it back")],
    data: Data,
    channel: Annotated[str, typer.Option(help="the channel to move; canary is the newest version by itself")] = "stable",
    format: AsFormat = "text",  # the option's name
) -> None:
    """Make a channel point at a version. Clients that follow it get it at their next sync; going back they must be told to.

    Example: compeft experts promote sentiment 3 --channel stable --data /var/lib/compeft
    """
    curating.promote(open_ledger(data), name, version, channel, now_ms())
    values = {"expert": name, "channel": channel, "version": version}
    typer.echo(json.dumps(values) if format == "json" else f"{name}: {channel} is version {version}")
