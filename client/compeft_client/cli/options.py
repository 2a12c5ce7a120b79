"""The options by which a command learns who this client is and which aggregator it talks to: one definition for all commands.

    @app.command()
    @takes_edge
    def pull(expert: str, edge: EdgeConfig) -> None: ...

The command line gets --site and the options that replace parts of it, in the place of `edge`; the function gets what was given, under
the names that `compeft_client.identity.edge_config.edge_of` takes. Paths are absolute, so the values may be handed to another process.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

AsFormat = Annotated[Literal["text", "json"], typer.Option("--format", help="text for people, json for programs")]
EdgeConfig = Mapping[str, object]

EDGE_OPTIONS: dict[str, Any] = {
    "site": Annotated[
        Path | None,
        typer.Option(envvar="COMPEFT_SITE", help="folder that `compeft enroll` made; replaces the options below"),
    ],
    "aggregator": Annotated[str | None, typer.Option(help="host:port of the aggregator")],
    "aggregator_key": Annotated[Path | None, typer.Option(help="file with the aggregator's public key")],
    "key": Annotated[Path | None, typer.Option(help="file with this client's private key (mode 0600)")],
    "state_dir": Annotated[Path | None, typer.Option(help="folder for this client's memory: synced experts, residuals")],
    "tls_ca": Annotated[Path | None, typer.Option(help="PEM of the authority behind the aggregator's certificate")],
    "tls_cert": Annotated[Path | None, typer.Option(help="PEM of this client's certificate")],
    "tls_key": Annotated[Path | None, typer.Option(help="PEM of this client's certificate's key (mode 0600)")],
}
"""Parameter -> its type and option. The names of `edge_of` have a hyphen for the underscore."""


def takes_edge(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command EDGE_OPTIONS in the place of its parameter `edge`."""
    own = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in EDGE_OPTIONS.items()]
    before = [p.replace(kind=keyword) for p in own.parameters.values() if p.name != "edge"]

    @functools.wraps(command)
    def taking(**values: Any) -> None:
        edge = {name.replace("_", "-"): _absolute(values.pop(name)) for name in EDGE_OPTIONS}
        command(**values, edge={name: value for name, value in edge.items() if value is not None})

    taking.__signature__ = own.replace(parameters=[*before, *shared])  # type: ignore[attr-defined]  # what typer reads
    return taking


def _absolute(value: object) -> object:
    return value.absolute() if isinstance(value, Path) else value
