"""Commands for the live page: dashboard, dashboard-password. Each parses its options, calls one function, prints the result."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from compeft_core.errors import InputError
from compeft_server.app.opened import OpenedData
from compeft_server.cli.options import AsFormat, Currency, Data, PricePerGb, show
from compeft_server.domain.price import price_of

app = typer.Typer()


@app.command("dashboard")
def dashboard(
    data: Data,
    host: Annotated[str, typer.Option(help="address to listen on; anything but loopback needs a password and TLS")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes a free one")] = 8443,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM of the page's certificate")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of its key")] = None,
    behind_proxy: Annotated[bool, typer.Option("--behind-proxy", help="a proxy in front speaks TLS with the browser")] = False,
    price_per_gb: PricePerGb = None,
    currency: Currency = "EUR",
    output_format: AsFormat = "text",
) -> None:
    """Serve the live page over an aggregator's ledger: bytes saved with the quality beside them, rounds, experts, clients, /metrics.

    Examples: compeft dashboard --data /var/lib/compeft --price-per-gb 0.08;
    compeft dashboard --data /var/lib/compeft --host 0.0.0.0 --tls-cert page.crt --tls-key page.pem
    """
    from compeft_server.app.observability import live_page
    from compeft_server.dashboard.server import ListenAddress

    listen = ListenAddress(host, port, tls_cert, tls_key, behind_proxy)
    with OpenedData(_existing(data)) as there:
        web = live_page(data, there.ledger, listen, price_of(price_per_gb, currency))
        address = f"{'https' if tls_cert else 'http'}://{host}:{web.port}/"
        show({"address": address}, f"the live page is at {address}", output_format)
        sys.stdout.flush()
        web.run()


@app.command("dashboard-password")
def dashboard_password(data: Data) -> None:
    """Set the operator's password for the live page; it is read from the terminal, or from standard input.

    Examples: compeft dashboard-password --data /var/lib/compeft; pass show compeft | compeft dashboard-password --data /var/lib/compeft
    """
    from compeft_server.dashboard.security import set_password

    tty = sys.stdin.isatty()
    password = typer.prompt("Password", hide_input=True, confirmation_prompt=True) if tty else sys.stdin.readline().rstrip("\r\n")
    typer.echo(f"kept, hashed, in {set_password(data, password)}; restart the page to use it")


def _existing(data: Path) -> Path:
    if not data.is_dir():
        raise InputError(f"no data directory exists at {data}: `compeft serve --data {data}` makes one")
    return data
