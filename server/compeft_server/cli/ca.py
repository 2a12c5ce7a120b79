"""Commands about the aggregator's own certificate authority: ca init, show, renew, issue, rotate, retire."""

import json
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509

from compeft_proto.clock import now_ms
from compeft_server.app.opened import OpenedData
from compeft_server.cli.options import AsFormat, Data
from compeft_server.identity import authority_files as files
from compeft_server.identity import certificate_authority as ca
from compeft_server.identity import service_certificates

LOCAL = ("localhost", "127.0.0.1")
"""Names that every server's certificate is also for: a conductor on the same machine uses them."""

app = typer.Typer()
group = typer.Typer(help="The certificate authority behind mutual TLS.", no_args_is_help=True)
app.add_typer(group, name="ca")


@group.command("init")
def init(
    data: Data,
    host: Annotated[list[str], typer.Option(help="DNS name or IP address by which clients reach this server; may be repeated")],
    output_format: AsFormat = "text",
) -> None:
    """Make an authority and the server's certificate; `compeft serve` uses them from then on.

    Example: compeft ca init --data /var/lib/compeft --host agg.example --host 192.0.2.7
    """
    made = files.init(data, list(dict.fromkeys([*host, *LOCAL])), now_ms())
    _note(data, "make authority", made.current.certificate)
    _show(data, output_format)


@group.command("show")
def show(data: Data, output_format: AsFormat = "text") -> None:
    """Show the authority, the one before it while it is believed, and the server's certificate.

    Example: compeft ca show --data /var/lib/compeft
    """
    _show(data, output_format)


@group.command("renew")
def renew(
    data: Data,
    host: Annotated[list[str] | None, typer.Option(help="other names than it has now; may be repeated")] = None,
    output_format: AsFormat = "text",
) -> None:
    """Make a new certificate and key for the server; a running one takes it up. It also does so itself, in the last third of a year.

    Example: compeft ca renew --data /var/lib/compeft --host agg2.example
    """
    files.renew_server(data, now_ms(), list(dict.fromkeys([*host, *LOCAL])) if host else None)
    _show(data, output_format)


@group.command("issue")
def issue(
    data: Data,
    folder: Annotated[Path, typer.Argument(help="folder that gets server.pem and ca.crt")],
    host: Annotated[list[str], typer.Option(help="DNS name or IP address of that service; may be repeated")],
    output_format: AsFormat = "text",
) -> None:
    """Give a service beside the aggregator a certificate: a reverse proxy, Flower's SuperLink, the live page.

    Does nothing while the one there will do, so run it every day, by cron or a timer, and reload the service if it says "new".

    Example: compeft ca issue /etc/compeft/proxy --host fl.example --data /var/lib/compeft
    """
    fresh = service_certificates.issue(data, folder, list(dict.fromkeys([*host, *LOCAL])), now_ms())
    if fresh:
        with OpenedData(data) as there:
            there.ledger.membership.note("issue certificate", host[0], now_ms(), folder=str(folder))
    values = {
        "new": fresh,
        "certificate": str(folder / service_certificates.CERTIFICATE),
        "authorities": str(folder / service_certificates.AUTHORITIES),
    }
    state = "new" if fresh else "kept"
    lines = [f"{state:<12} {values['certificate']}", f"{'authorities':<12} {values['authorities']}"]
    typer.echo(json.dumps(values) if output_format == "json" else "\n".join(lines))


@group.command("rotate")
def rotate(data: Data, output_format: AsFormat = "text") -> None:
    """Make a new authority beside the old one. Both are believed; clients get both when they renew. No restart, nobody is cut off.

    Example: compeft ca rotate --data /var/lib/compeft
    """
    _note(data, "rotate authority", files.rotate(data, now_ms()).current.certificate)
    _show(data, output_format)


@group.command("retire")
def retire(data: Data, output_format: AsFormat = "text") -> None:
    """Believe the old authority no more: clients that have not renewed since `compeft ca rotate` must be invited again.

    Example: compeft ca retire --data /var/lib/compeft
    """
    _note(data, "retire authority", files.retire(data, now_ms()))
    _show(data, output_format)


def _note(data: Path, action: str, certificate: x509.Certificate) -> None:
    with OpenedData(data) as there:
        there.ledger.membership.note(action, "authority", now_ms(), fingerprint=ca.fingerprint(certificate).hex())


def _show(data: Path, output_format: str) -> None:
    trust, server = files.load(data), files.server_certificate(data)
    shown = {"authority": trust.current.certificate} | ({"old": trust.old.certificate} if trust.old else {}) | {"server": server}
    if output_format == "json":
        rows = {name: _facts(certificate) for name, certificate in shown.items()}
        typer.echo(json.dumps(rows | {"hosts": list(ca.hosts_of(server))}))
        return
    for name, certificate in shown.items():
        typer.echo(f"{name:<10} {ca.fingerprint(certificate).hex()}  until {certificate.not_valid_after_utc:%Y-%m-%d}")
    typer.echo(f"{'hosts':<10} {', '.join(ca.hosts_of(server))}")


def _facts(certificate: x509.Certificate) -> dict[str, object]:
    return {
        "subject": certificate.subject.rfc4514_string(),
        "fingerprint": ca.fingerprint(certificate).hex(),
        "expires_at_ms": ca.ends_ms(certificate),
    }
