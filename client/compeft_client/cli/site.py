"""Commands of a site folder: enroll makes one from an invitation, renew keeps it good. Each parses, calls one function, prints."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from compeft_client.cli.options import AsFormat
from compeft_core.errors import InputError
from compeft_proto.clock import now_ms
from compeft_proto.invitation import PREFIX, from_text

Site = Annotated[
    Path,
    typer.Option(
        envvar="COMPEFT_SITE", help="the site folder: keys, certificate, the aggregator's address and key, local memory"
    ),
]
MOST_LINES, MOST_CHARACTERS = 10, 4096
"""How far standard input is read for an invitation."""

app = typer.Typer()


@app.command()
def enroll(
    invitation: Annotated[str, typer.Argument(help="what `compeft clients invite` printed; - reads it from standard input")],
    site: Site,
    aggregator: Annotated[
        str, typer.Option(help="host:port where the aggregator enrols; as the invitation says by default")
    ] = "",
    output_format: AsFormat = "text",
) -> None:
    """Become a member by an invitation: makes keys that never leave this machine, and writes a site folder for --site.

    The server must be the one that invited: its authority is compared before the invitation's secret is sent. If the answer is lost, the
    same command again gets it.

    Example: compeft enroll cpi1_... --aggregator agg.example:9444 --site /var/lib/compeft-edge
    """
    from compeft_client.identity.enrol import enrol

    invited = from_text(_told() if invitation == "-" else invitation)
    address = aggregator or invited.address
    if not address:
        raise InputError("the invitation names no address: give --aggregator host:port of `compeft serve --enroll-port`")
    standing = enrol(invited, address, site.absolute())
    values: dict[str, object] = {
        "name": standing.name,
        "role": standing.role,
        "keyid": standing.keyid,
        "aggregator": standing.aggregator,
    }
    values |= {"expires_at_ms": standing.expires_at_ms, "site": str(site)}
    certificate = f", certificate until {_day(standing.expires_at_ms)}" if standing.expires_at_ms else ""
    text = f"enrolled at {standing.aggregator} as {standing.name} ({standing.role}) with key {standing.keyid}{certificate}"
    typer.echo(json.dumps(values) if output_format == "json" else f"{text}\nuse it with --site {site}")


def _told() -> str:
    """The invitation in what is on standard input: all that `compeft clients invite` prints, or the invitation alone."""
    for _ in range(MOST_LINES):
        line = sys.stdin.readline(MOST_CHARACTERS)
        found = next((word for word in line.replace('"', " ").split() if word.startswith(PREFIX)), "")
        if found or not line:
            return found
    return ""


@app.command()
def renew(
    site: Site,
    replace_key: Annotated[bool, typer.Option("--new-key", help="also replace the signing key")] = False,
    when_due: Annotated[
        bool, typer.Option("--when-due", help="only if less than a third of the certificate's life is left")
    ] = False,
    output_format: AsFormat = "text",
) -> None:
    """Renew this member's certificate, and its signing key if you like; fetches new authorities and keys of the aggregator.

    What the old key signed stays this member's, and the numbering of its updates goes on. Run it with --when-due every day, by cron or a
    timer.

    Example: compeft renew --site /var/lib/compeft-edge --when-due
    """
    from compeft_client.identity.certificates import is_due, read_certificate
    from compeft_client.identity.enrol import renew as renew_site
    from compeft_client.identity.site_folder import read_site

    path = read_site(site).get("tls-cert")
    if when_due and not replace_key and not (path and is_due(read_certificate(Path(str(path))), now_ms())):
        typer.echo(json.dumps({"renewed": False}) if output_format == "json" else "not due yet")
        return
    standing = renew_site(site.absolute(), replace_key=replace_key)
    if output_format == "json":
        typer.echo(json.dumps({"renewed": True, "keyid": standing.keyid, "expires_at_ms": standing.expires_at_ms}))
        return
    certificate = f", certificate until {_day(standing.expires_at_ms)}" if standing.expires_at_ms else ""
    typer.echo(f"{standing.name} goes on with key {standing.keyid}{certificate}")


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")
