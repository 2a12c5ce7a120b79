"""Commands of an aggregator's operator: serve, demo. Each parses its options, calls one function, prints the result."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from compeft_core.errors import InputError
from compeft_server.app.limits_file import read_limits
from compeft_server.app.logs import LogFormat
from compeft_server.app.observability import observe
from compeft_server.app.server import Settings, serve
from compeft_server.cli.options import AsFormat, Currency, Data, PricePerGb
from compeft_server.data_directory import Storage, choose_storage
from compeft_server.domain.limits import Limits
from compeft_server.domain.price import price_of
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.identity.tls_credentials import Tls

TABLE_WIDTH = 80
"""Columns that the report's table needs; a narrower terminal wraps its lines rather than lose figures."""

app = typer.Typer()


@app.command("serve")
def serve_command(
    data: Data,
    host: Annotated[str, typer.Option(help="address to listen on; anything but loopback needs TLS")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes a free one")] = 9443,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM of this server's certificate")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of its key")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="PEM of the authority behind the clients' certificates")] = None,
    enroll_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="a second port, where invited clients enrol; closed by default; 0 takes a free one"),
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="URL of a PostgreSQL for the ledger; noted in the data directory, SQLite there by default")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="URL of a bucket for the chunks: s3://, gs:// or az://; noted like --database")
    ] = None,
    web: Annotated[
        int | None, typer.Option(min=0, max=65535, help="also serve the live page and /metrics, on this port of loopback")
    ] = None,
    price_per_gb: PricePerGb = None,
    currency: Currency = "EUR",
    log_format: Annotated[
        LogFormat, typer.Option(help="log lines on standard error: console for people, json for programs")
    ] = "console",
    limits: Annotated[Path | None, typer.Option(help="TOML file of limits for each client and for all")] = None,
    output_format: AsFormat = "text",
) -> None:
    """Run the aggregator until SIGTERM or Ctrl-C. Prints its address and key once it listens.

    TLS is that of the data directory's own authority, if `compeft ca init` made one; the --tls options come before it. A certificate
    that is replaced is taken up without a restart.

    Examples: compeft serve --data /var/lib/compeft --host 0.0.0.0 --enroll-port 9444

    compeft serve --data /var/lib/compeft --host 0.0.0.0 --tls-cert server.crt --tls-key server.pem --tls-client-ca ca.crt

    compeft serve --data D --database postgresql+psycopg://compeft@db/compeft --store s3://bucket/prefix
    """
    given = [f for f in (tls_cert, tls_key, tls_client_ca) if f]
    if given and len(given) < 3:
        raise InputError("TLS needs all of --tls-cert, --tls-key and --tls-client-ca")
    tls = Tls(tls_cert, tls_key, tls_client_ca) if tls_cert and tls_key and tls_client_ca else None
    choose_storage(data, Storage(database, store))

    observed = observe(data, web, price_of(price_per_gb, currency), log_format)

    def ready(listening: int, enrolling: int | None) -> None:
        values = {"address": f"{host}:{listening}", "keyid": own_key(data).keyid, "public_key": str(data / "aggregator.pub")}
        values |= {"enrolment": f"{host}:{enrolling}"} if enrolling is not None else {}
        values |= {"web": f"http://127.0.0.1:{observed.web_port}/"} if observed.web_port else {}
        typer.echo(json.dumps(values) if output_format == "json" else "\n".join(f"{k:<10} {v}" for k, v in values.items()))

    settings = Settings(data, host, port, tls, read_limits(limits) if limits else Limits(), enroll_port=enroll_port)
    serve(settings, ready, interceptors=[observed.observer], beside=observed.beside)


@app.command("demo")
def demo_command(
    compare: Annotated[
        bool, typer.Option("--compare", help="also run plain Flower FedAvg, dense, same seeds and rounds")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="rounds to run")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="seed of the initial state and of the training")] = 0,
    density: Annotated[float, typer.Option(help="fraction of the task vector that a client sends")] = 0.05,
    model: Annotated[
        str, typer.Option(help="a language model instead: smollm2, tiny (made on the spot), or a model's folder")
    ] = "",
    folder: Annotated[Path | None, typer.Option(help="where logs, report and expert go; default demo-runs/<time>")] = None,
    output_format: AsFormat = "text",
) -> None:
    """Run the whole system on this machine, on real data, and report what it moved and what that was worth.

    Four edge clients fine-tune a LoRA of all-MiniLM-L6-v2 on sentiment, one domain each, through Flower; their updates travel
    compressed and signed over gRPC. Takes a few minutes on two cores. With --model they fine-tune a causal language model on naming
    languages, one region each: 5 % of each update goes up, 10 % of each merged one down.

    Examples: compeft demo; compeft demo --compare; compeft demo --rounds 2 --format json; compeft demo --model smollm2 --rounds 3
    """
    from compeft_server.demo.demo import DemoSettings, run_demo
    from compeft_server.reports.formats.html import to_html
    from compeft_server.reports.formats.json_format import to_json
    from compeft_server.reports.formats.text import to_table

    where = (folder or Path("demo-runs") / time.strftime("%Y%m%d-%H%M%S")).absolute()
    if where.exists():
        raise InputError(f"{where} exists already: choose another --folder")
    if model and density != 0.05:
        raise InputError(f"--density {density} is for the demo of sentiment: that of a language model sends 5 % of each update")
    console = _wide(Console(stderr=output_format == "json"))
    done = run_demo(DemoSettings(where, rounds, seed, density, compare, model=model), console)
    values = to_json(done.report, done.extras) | {"control_bytes": done.control_bytes, "expert_directory": str(done.expert)}
    page = where / "report.html"
    page.write_text(to_html(done.report, done.extras), encoding="utf-8")
    (where / "report.json").write_text(json.dumps(values | {"report": str(page)}, indent=1), encoding="utf-8")
    if output_format == "json":
        typer.echo(json.dumps(values | {"report": str(page)}))
        return
    console.print(to_table(done.report))
    console.print(f"Flower's own messages, beside the wire bytes above: {done.control_bytes / 1000:.1f} kB for the whole run")
    console.print(
        f"composed expert  {done.expert}\nreport           {page}\nlogs             {where / 'logs'}\n"
        f"live page        compeft dashboard --data {where / 'aggregator'}"
    )


def _wide(console: Console) -> Console:
    console.width = max(console.width, TABLE_WIDTH)
    return console
