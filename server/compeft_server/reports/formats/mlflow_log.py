"""The report at an MLflow tracking server: the figures of its JSON as metrics, versions as steps, the page and the JSON as artifacts."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from compeft_core.errors import InputError
from compeft_server.reports.figures.extras import Extras
from compeft_server.reports.figures.report import Report
from compeft_server.reports.formats.html import to_html
from compeft_server.reports.formats.json_format import to_json

BATCH = 1000
"""Most metrics that MLflow takes in one request."""
EXPERIMENT = "compeft"
MAX_NAME = 250


def log_to_mlflow(report: Report, extras: Extras, tracking_uri: str, experiment: str = EXPERIMENT) -> str:
    """Make a run of this report; its id. Numbers of the JSON are metrics by their names (`up.wire_bytes`), those of versions have the
    version as their step, and business metrics are series over their times.

    Errors: InputError if mlflow is not installed, or the tracking server refuses.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise InputError("--to mlflow needs mlflow: pip install 'compeft[mlflow]'") from error
    values = to_json(report, extras)
    metrics = [Metric(*row) for row in metric_rows(values, report.last_ms or 0)]
    params = [Param(name, str(values[name])) for name in ("expert", "metric", "parameters", "clients", "rounds")]
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        found = client.get_experiment_by_name(experiment)
        place = found.experiment_id if found is not None else client.create_experiment(experiment)
        run = client.create_run(place, run_name=report.expert).info.run_id
        client.log_batch(run, params=params, tags=[RunTag("compeft.savings", report.silence or "stated")])
        for first in range(0, len(metrics), BATCH):
            client.log_batch(run, metrics=metrics[first : first + BATCH])
        client.log_text(run, json.dumps(values, indent=1), "report.json")
        client.log_text(run, to_html(report, extras), "report.html")
        client.set_terminated(run)
    except MlflowException as error:
        raise InputError(f"MLflow at {tracking_uri[:80]!a} refused the report: {str(error).splitlines()[0][:200]}") from error
    return str(run)


def metric_rows(values: Mapping[str, Any], at_ms: int) -> Iterator[tuple[str, float, int, int]]:
    """(name, value, time in ms, step) of every number in the report's JSON."""
    for name, value in _numbers("", {k: v for k, v in values.items() if k not in ("versions", "kpis")}):
        yield name, value, at_ms, 0
    for version in values["versions"]:
        for name, value in _numbers("version.", {k: v for k, v in version.items() if k != "version"}):
            yield name, value, at_ms, version["version"]
    for series in values["kpis"]:
        for step, stated in enumerate(series["values"]):
            yield _name(f"kpi.{series['name']}"), float(stated["value"]), stated["at_ms"], step


def _numbers(before: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers of nested objects; lists are left to the JSON artifact."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(f"{before}{name}.", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield _name(f"{before}{name}"), float(value)


def _name(name: str) -> str:
    """The name with the characters that MLflow allows."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)[:MAX_NAME]
