"""The command `health`: one question, one exit code, for people, container engines and orchestrators. It needs no extra."""

from pathlib import Path
from typing import Annotated

import typer
from click.core import ParameterSource

from compeft_core.errors import InputError
from compeft_proto.clock import now_ms
from compeft_proto.transport import ClientTls
from compeft_proto.v1 import exchange_pb2
from compeft_server.admin import health
from compeft_server.cli.options import AsFormat, show

app = typer.Typer()
OWN_ADDRESS = "localhost:9443"
SERVICE = exchange_pb2.DESCRIPTOR.services_by_name["ExpertExchange"].full_name


@app.command("health")
def health_command(
    context: typer.Context,
    address: Annotated[
        str | None, typer.Argument(help=f"host:port; the site's aggregator, or {OWN_ADDRESS} by default", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(envvar="COMPEFT_DATA", help="the aggregator's data directory, on its own machine")
    ] = None,
    site: Annotated[
        Path | None, typer.Option(envvar="COMPEFT_SITE", help="folder that `compeft enroll` made, on a member's machine")
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM of the authority behind the aggregator's certificate")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM of a client's certificate")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of its key (mode 0600)")] = None,
    service: Annotated[str, typer.Option(help="gRPC service to ask for")] = SERVICE,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds for one answer")] = 5.0,
    wait: Annotated[float, typer.Option(min=0, help="seconds to ask again while nobody answers")] = 0.0,
    output_format: AsFormat = "text",
) -> None:
    """Ask whether the aggregator serves: exit code 0 if it does, 8 if nobody answers, 1 if it says no.

    With --data it asks as the aggregator's own machine may; a certificate is made in memory for that. With --site it asks as that
    member does, so it also shows whether the member's certificate is good. An option that is typed replaces the other one's
    environment variable; of two variables COMPEFT_DATA is used.

    Examples: compeft health --data /var/lib/compeft

    compeft health --site /var/lib/compeft-edge --wait 60
    """
    data, site = _one_of(context, data, site)
    at, tls = _peer(address, data, site, (tls_ca, tls_cert, tls_key))
    health.ask_until(at, service, tls, timeout, wait)
    show({"address": at, "status": "serving"}, f"serving  {at}", output_format)


def _one_of(context: typer.Context, data: Path | None, site: Path | None) -> tuple[Path | None, Path | None]:
    """Data directory and site, at most one of them. Errors: InputError if both were typed."""
    if data is None or site is None:
        return data, site
    typed = {name for name in ("data", "site") if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if len(typed) == 2:
        raise InputError("--data is for the aggregator's machine, --site for a member's: give one of them")
    return (None, site) if "site" in typed else (data, None)


def _peer(
    address: str | None, data: Path | None, site: Path | None, own: tuple[Path | None, Path | None, Path | None]
) -> tuple[str, ClientTls | None]:
    """The address to ask, and the TLS to ask with."""
    authority, certificate, key = own
    if authority and certificate and key:
        return address or OWN_ADDRESS, health.files_tls(authority, certificate, key)
    if any(own):
        raise InputError("TLS needs all of --tls-ca, --tls-cert and --tls-key")
    if site is not None:
        at, tls = health.site_tls(site)
        return address or at, tls
    return address or OWN_ADDRESS, health.own_tls(data, now_ms()) if data is not None else None
