"""Commands of an aggregator's operator: serve, clients, report, demo. Each parses its options, calls one function, prints the result."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from compeft_core.errors import InputError
from compeft_proto.keys import public_key_from_pem
from compeft_server.facts import ROLES
from compeft_server.serving import Settings, Tls, now_ms, open_ledger, own_key, serve

AsFormat = Annotated[Literal["text", "json"], typer.Option("--format", help="text for people, json for programs")]
Data = Annotated[Path, typer.Option(help="the aggregator's data directory")]

app = typer.Typer()
clients = typer.Typer(help="Who may talk to the aggregator.", no_args_is_help=True)
app.add_typer(clients, name="clients")


@app.command("serve")
def serve_command(
    data: Data,
    host: Annotated[str, typer.Option(help="address to listen on; anything but loopback needs TLS")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes a free one")] = 9443,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM of this server's certificate")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of its key")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="PEM of the authority behind the clients' certificates")] = None,
    format: AsFormat = "text",  # the option's name
) -> None:
    """Run the aggregator until SIGTERM or Ctrl-C. Prints its address and key once it listens.

    Example: compeft serve --data /var/lib/compeft --host 0.0.0.0 --tls-cert server.crt --tls-key server.pem --tls-client-ca ca.crt
    """
    given = [f for f in (tls_cert, tls_key, tls_client_ca) if f]
    if given and len(given) < 3:
        raise InputError("TLS needs all of --tls-cert, --tls-key and --tls-client-ca")
    tls = Tls(tls_cert, tls_key, tls_client_ca) if tls_cert and tls_key and tls_client_ca else None
    public = own_key(data).public

    def ready(listening: int) -> None:
        values = {"address": f"{host}:{listening}", "keyid": public.keyid, "public_key": str(data / "aggregator.pub")}
        typer.echo(json.dumps(values) if format == "json" else "\n".join(f"{k:<10} {v}" for k, v in values.items()))

    serve(Settings(data, host, port, tls), ready)


@clients.command("add")
def clients_add(
    name: Annotated[str, typer.Argument(help="a name for people")],
    public_key: Annotated[Path, typer.Argument(help="file with the client's public key")],
    data: Data,
    role: Annotated[str, typer.Option(help=f"one of {', '.join(ROLES)}")] = "edge",
) -> None:
    """Enrol a key.

    Example: compeft clients add berlin-1 berlin-1.pub --data /var/lib/compeft
    """
    known = next((r for r in ROLES if r == role), None)
    if known is None:
        raise InputError(f"role {role!r}, allowed are {', '.join(ROLES)}")
    try:
        public = public_key_from_pem(public_key.read_bytes(), str(public_key))
    except OSError as error:
        raise InputError(f"cannot read {public_key}: {error.strerror}") from error
    ledger = open_ledger(data)
    ledger.enrol(name, public, known, now_ms())
    typer.echo(f"{name} is enrolled as {known} with key {public.keyid}")


@clients.command("list")
def clients_list(data: Data, format: AsFormat = "text") -> None:  # the option's name
    """List enrolled keys.

    Example: compeft clients list --data /var/lib/compeft --format json
    """
    members = open_ledger(data).members()
    if format == "json":
        rows = [{"name": m.name, "role": m.role, "keyid": m.public.keyid, "revoked": m.revoked} for m in members]
        typer.echo(json.dumps(rows))
        return
    for m in members:
        typer.echo(f"{m.name:<24} {m.role:<10} {m.public.keyid}{'  revoked' if m.revoked else ''}")


@clients.command("revoke")
def clients_revoke(name: Annotated[str, typer.Argument(help="the member's name")], data: Data) -> None:
    """Refuse a member from now on. What it contributed stays.

    Example: compeft clients revoke berlin-1 --data /var/lib/compeft
    """
    if not open_ledger(data).revoke(name, now_ms()):
        raise InputError(f"no enrolled member is named {name!r}: see `compeft clients list`")
    typer.echo(f"{name} is revoked")
