"""`compeft report`: parses its options, reads one report, writes it in the format that was asked for."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer
from rich.console import Console

from compeft_core.errors import FormatError, InputError
from compeft_server.admin.policy_admin import check_expert
from compeft_server.app.opened import OpenedData, opened
from compeft_server.cli.options import Currency, Data, PricePerGb
from compeft_server.domain.price import Price, energy_of, price_of, tariffs_of
from compeft_server.private_files import write_durably
from compeft_server.reports.figures.extras import Extras
from compeft_server.reports.figures.provenance import own_public_keys
from compeft_server.reports.figures.report import Report

T = TypeVar("T")
Format = Literal["text", "html", "md", "json", "csv", "parquet"]
Rows = Literal["transfers", "kpis"]
TABLE_WIDTH = 80
"""Columns that the report's table needs; a narrower terminal wraps its lines rather than lose figures."""

app = typer.Typer()


@app.command("report")
def report_command(
    data: Data,
    expert: Annotated[str | None, typer.Option(help="name of the expert; not needed where there is one only")] = None,
    since: Annotated[
        str | None, typer.Option(help="only bytes from this day or time on, such as 2026-11-01; UTC unless it says")
    ] = None,
    price_per_gb: PricePerGb = None,
    currency: Currency = "EUR",
    tariff: Annotated[
        list[str] | None, typer.Option(help="LINK=PRICE of a GB on a link of `compeft clients label --link`; again for more")
    ] = None,
    kwh_per_gb: Annotated[
        float | None, typer.Option(help="energy of a GB on the wire, in kWh; without it no energy is printed")
    ] = None,
    co2_per_kwh: Annotated[float | None, typer.Option(help="g of CO2 of a kWh where you are")] = None,
    pool: Annotated[Path | None, typer.Option(help="JSON of `compeft bench pool -o`, for the section on GPU use")] = None,
    dense: Annotated[
        Path | None, typer.Option(help="JSON of a dense run to compare with, as `compeft demo --compare` writes")
    ] = None,
    output_format: Annotated[
        Format, typer.Option("--format", help="how to write it; csv and parquet: a row a transfer")
    ] = "text",
    rows: Annotated[
        Rows, typer.Option(help="what csv and parquet have a row for: each transfer, or each value of a business metric")
    ] = "transfers",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="file to write instead of standard output")] = None,
    to: Annotated[Literal["mlflow"] | None, typer.Option(help="log the same figures to an MLflow tracking server")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="where: http://HOST:PORT, or sqlite:///FILE")
    ] = None,
    experiment: Annotated[str, typer.Option(help="MLflow experiment of the run")] = "compeft",
    language: Annotated[str, typer.Option(help="language of the HTML page: en or ja")] = "en",
) -> None:
    """Bytes, time and money with the task metric beside them: one expert's bandwidth report.

    Examples: compeft report --data /var/lib/compeft --since 2026-11-01 --price-per-gb 0.08 --format html -o report.html;
    compeft report --data /var/lib/compeft --format parquet -o transfers.parquet;
    compeft report --data /var/lib/compeft --to mlflow --tracking-uri http://mlflow.example:5000
    """
    from compeft_server.reports.figures.build import read_report
    from compeft_server.reports.formats.json_format import dense_from_json

    if to is not None and not tracking_uri:
        raise InputError("invalid --to mlflow: expected --tracking-uri, such as http://127.0.0.1:5000 or sqlite:///mlflow.db")
    since_ms = None if since is None else moment_of(since)
    if output_format not in ("csv", "parquet") and rows != "transfers":
        raise InputError(f"invalid --rows {rows} with --format {output_format}: expected --format csv or parquet")
    arm = _parsed(dense, dense_from_json) if dense else None
    price, energy = price_of(price_per_gb, currency, tariffs_of(tariff or ())), energy_of(kwh_per_gb, co2_per_kwh)
    with opened(data) as there:
        if output_format in ("csv", "parquet"):
            _write_rows(there, expert, since_ms or 0, Table(output_format, rows, output))
            return
        name = expert or _only(there)
        extras = replace(_extras(there, name, price, pool), energy=energy)
        report = read_report(there.ledger, name, arm, since_ms=since_ms)
    if to is not None and tracking_uri:
        from compeft_server.reports.formats.mlflow_log import log_to_mlflow

        typer.echo(f"MLflow run {log_to_mlflow(report, extras, tracking_uri, experiment)} of {tracking_uri}")
        return
    _write_report(report, extras, output_format, output, language)


def moment_of(words: str) -> int:
    """Milliseconds since 1970 of an ISO date or time; UTC unless it names its zone. Errors: InputError."""
    try:
        parsed = datetime.fromisoformat(words)
    except ValueError as error:
        raise InputError(f"--since {words[:40]!a} is not a date: write 2026-11-01 or 2026-11-01T08:00+01:00") from error
    return round((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp() * 1000)


def _write_report(report: Report, extras: Extras, output_format: Format, output: Path | None, language: str) -> None:
    from compeft_server.reports.formats.html import to_html
    from compeft_server.reports.formats.json_format import to_json
    from compeft_server.reports.formats.language import language_of
    from compeft_server.reports.formats.markdown import to_markdown

    say = language_of(language)
    if language != "en" and output_format != "html":
        raise InputError(f"invalid --language {language} with --format {output_format}: expected --format html")
    makers = {
        "json": lambda: json.dumps(to_json(report, extras)),
        "html": lambda: to_html(report, extras, say),
        "md": lambda: to_markdown(report, extras),
        "text": lambda: _as_text(report, extras),
    }
    if output_format == "text" and output is None:
        _print(report, extras)
        return
    _put(makers[output_format](), output)


@dataclass(frozen=True, slots=True)
class Table:
    """A table to write: its format, what it has a row for, and the file (None: standard output)."""

    output_format: Literal["csv", "parquet"]
    rows: Rows
    output: Path | None


def _write_rows(there: OpenedData, expert: str | None, since_ms: int, table: Table) -> None:
    from compeft_server.reports.formats.table_rows import COLUMNS, KPI_COLUMNS, kpi_rows, rows_of, to_csv, write_parquet

    if expert is not None:
        check_expert(there.ledger, expert)
    if table.output_format == "parquet" and table.output is None:
        raise InputError("Parquet is not for a terminal: give -o FILE")
    of_kpis = table.rows == "kpis"
    columns = KPI_COLUMNS if of_kpis else COLUMNS
    keys = own_public_keys(there.data)
    rows = kpi_rows(there.ledger, expert, since_ms) if of_kpis else rows_of(there.ledger, keys, expert, since_ms)
    if table.output_format == "csv":
        _put(to_csv(rows, columns), table.output, end="")
    elif table.output is not None:
        write_parquet(rows, table.output, columns)
        typer.echo(str(table.output))


def _extras(there: OpenedData, name: str, price: Price | None, pool: Path | None) -> Extras:
    from compeft_server.admin.privacy_account import account_or_none
    from compeft_server.reports.figures.extras import densities_of, pool_from_json

    measured = _parsed(pool, pool_from_json) if pool else None
    densities = densities_of(there.ledger, name, own_public_keys(there.data), there.store)
    return Extras(price, measured, densities, privacy=account_or_none(there.ledger, name))


def _only(there: OpenedData) -> str:
    names = there.ledger.experts()
    if len(names) != 1:
        raise InputError(f"which expert? --expert NAME; there are: {', '.join(names) or 'none'}")
    return names[0]


def _parsed(path: Path, parse: Callable[[str], T]) -> T:
    """What a file says. Errors: InputError if it cannot be read; FormatError, which names it."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not text: {error}") from error
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _put(words: str, output: Path | None, end: str = "\n") -> None:
    if output is None:
        typer.echo(words.removesuffix("\n") + end if end else words, nl=False)
    else:
        write_durably(output, words.encode())
        typer.echo(str(output))


def _as_text(report: Report, extras: Extras) -> str:
    from compeft_server.reports.formats.text import to_table

    capture = Console(record=True, file=StringIO(), width=TABLE_WIDTH)
    capture.print(to_table(report, extras))
    return capture.export_text()


def _print(report: Report, extras: Extras) -> None:
    from compeft_server.reports.formats.text import to_table

    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(to_table(report, extras))
