"""`compeft kpi`: business metrics of an expert over time, shown beside its bytes. Each command calls one function and prints."""

import csv
from pathlib import Path
from typing import Annotated

import typer

from compeft_core.errors import FormatError, InputError
from compeft_proto.clock import now_ms
from compeft_server.admin.policy_admin import check_expert
from compeft_server.app.opened import opened
from compeft_server.cli.options import AsFormat, Data, ExpertName, show
from compeft_server.cli.report import moment_of
from compeft_server.domain.kpi import Kpi, KpiSeries, KpiValue, check_kpi, values_from_csv
from compeft_server.reports.formats.text import iso, printable

app = typer.Typer()
kpi = typer.Typer(help="Business metrics of an expert over time, beside its bytes.", no_args_is_help=True)
app.add_typer(kpi, name="kpi")


@kpi.command("add")
def kpi_add(
    expert: ExpertName,
    data: Data,
    name: Annotated[str, typer.Option(help="name of the metric, such as 'tickets solved'")],
    value: Annotated[float | None, typer.Option(help="one value")] = None,
    at: Annotated[
        str | None, typer.Option(help="when it was measured: ISO 8601, UTC unless it says otherwise; now by default")
    ] = None,
    values: Annotated[Path | None, typer.Option("--csv", help="file with the columns at and value")] = None,
    unit: Annotated[str, typer.Option(help="unit of the values, such as %")] = "",
    goal: Annotated[float | None, typer.Option(help="what is aimed at")] = None,
    baseline: Annotated[float | None, typer.Option(help="the value before the expert was in use")] = None,
    output_format: AsFormat = "text",
) -> None:
    """Add values to a business metric of an expert. The same value at the same time again adds nothing.

    Examples: compeft kpi add sentiment --data D --name "tickets solved" --unit % --goal 70 --baseline 61 --value 66 --at 2026-11-01;
    compeft kpi add sentiment --data D --name "tickets solved" --csv tickets.csv
    """
    if (value is None) == (values is None):
        raise InputError("invalid kpi: expected either --value NUMBER or --csv FILE")
    stated = _read_csv(values) if values else [KpiValue(moment_of(at) if at else now_ms(), value or 0.0)]
    described = check_kpi(Kpi(expert, name, unit, goal, baseline))
    with opened(data) as there:
        check_expert(there.ledger, expert)
        new = there.ledger.kpis.add(described, stated, now_ms())
    text = f"{printable(name)} of {expert}: {new} new value{'' if new == 1 else 's'}"
    show({"expert": expert, "name": name, "new": new}, text, output_format)


@kpi.command("list")
def kpi_list(expert: ExpertName, data: Data, output_format: AsFormat = "text") -> None:
    """List the business metrics of an expert with their newest values.

    Examples: compeft kpi list sentiment --data D; compeft kpi list sentiment --data D --format json
    """
    with opened(data) as there:
        found = there.ledger.kpis.series(expert)
    show([_as_json(series) for series in found], "\n".join(map(_as_text, found)) or "none", output_format)


def _read_csv(path: Path) -> list[KpiValue]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return values_from_csv(csv.DictReader(file), moment_of)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error, FormatError) as error:
        raise FormatError(f"{path}: {error}") from error


def _as_json(series: KpiSeries) -> dict[str, object]:
    kpi, newest = series.kpi, series.values[-1] if series.values else None
    values: dict[str, object] = {
        "name": kpi.name,
        "unit": kpi.unit,
        "goal": kpi.goal,
        "baseline": kpi.baseline,
        "values": len(series.values),
    }
    return values | {"newest": newest.value if newest else None, "at": iso(newest.at_ms) if newest else None}


def _as_text(series: KpiSeries) -> str:
    kpi, newest = series.kpi, series.values[-1] if series.values else None
    unit = f" {printable(kpi.unit)}" if kpi.unit else ""
    beside = "".join(f", {name} {v:g}{unit}" for name, v in (("goal", kpi.goal), ("baseline", kpi.baseline)) if v is not None)
    shown = f"{newest.value:g}{unit} at {iso(newest.at_ms)}" if newest else "no value"
    return f"{printable(kpi.name)}: {shown}{beside}, {len(series.values)} values"
