"""Types of the options and arguments that several operator's commands take, and the one way in which they print."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from compeft_server.chunks.disk_space import give_way

AsFormat = Annotated[Literal["text", "json"], typer.Option("--format", help="text for people, json for programs")]


def _with_room(context: typer.Context, data: Path) -> Path:
    """The data directory; on a full disk, the room that `compeft serve` has set aside is given up to the operator's command."""
    if context.info_name != "serve":
        give_way(data)
    return data


Data = Annotated[Path, typer.Option(envvar="COMPEFT_DATA", help="the aggregator's data directory", callback=_with_room)]
ExpertName = Annotated[str, typer.Argument(help="name of the expert")]
PricePerGb = Annotated[float | None, typer.Option("--price-per-gb", min=0, help="price of a GB (10^9 bytes) on the wire")]
Currency = Annotated[str, typer.Option(help="the currency of that price")]


def show(values: object, text: str, output_format: str) -> None:
    """Print one result on standard output: `values` as JSON, or `text`."""
    typer.echo(json.dumps(values) if output_format == "json" else text)
