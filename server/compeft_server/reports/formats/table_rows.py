"""The ledger's facts as one table, for spreadsheets and notebooks: a row for each transfer, with the facts of its version beside it.

CSV and Parquet have the same columns in the same order; docs/dashboard.md lists them. Ratios are left to whoever reads.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compeft_core.errors import InputError
from compeft_proto.keys import PublicKey
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.lookups.pages import Listings
from compeft_server.ledger.lookups.totals import Summaries
from compeft_server.reports.figures.provenance import Provenance, read_origin
from compeft_server.reports.formats.text import iso


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `kind` is one of time, text, count, number; every column may be empty where nothing is known."""

    name: str
    kind: str
    words: str


COLUMNS: tuple[Column, ...] = (
    Column("at", "time", "start of the call, UTC"),
    Column("expert", "text", "name of the expert; empty if the call never proved one"),
    Column("run", "text", "run of the round that it served"),
    Column("round", "count", "number of that round"),
    Column("version", "count", "version that an upload was made for, or a sync delivered"),
    Column("direction", "text", "up: an upload; down: a sync"),
    Column("client", "text", "enrolled name; empty if the call never proved a key"),
    Column("role", "text", "edge, conductor or reader"),
    Column("keyid", "text", "the client's key"),
    Column("dense_fp32_bytes", "count", "the same parameters as float32; 0 for calls that moved none"),
    Column("dense_bf16_bytes", "count", "the same as bfloat16"),
    Column("payload_bytes", "count", "encoded parameters"),
    Column("wire_received_bytes", "count", "counted on the socket, to the aggregator"),
    Column("wire_sent_bytes", "count", "counted on the socket, from the aggregator"),
    Column("relayed_bytes", "count", "of these, what others carried on inside their own messages"),
    Column("seconds", "number", "how long the call lasted, waiting included"),
    Column("metric", "text", "the expert's task metric"),
    Column("quality", "number", "that metric at this version, mean over clients weighted by their examples"),
    Column("quality_base", "number", "that metric of the base model alone"),
    Column("quality_reported_by", "text", "who stated the quality without a measurement; empty where clients measured it"),
    Column("version_origin", "text", "how the version came to be: merge, push, start, rollback ..."),
    Column("version_density", "number", "fraction of the parameters that the version's step kept"),
    Column("version_scale", "text", "scale rule of that step"),
    Column("version_codec", "text", "codec of that step"),
    Column("version_method", "text", "merge method"),
    Column("version_participants", "count", "updates merged into it"),
    Column("version_merge_seconds", "number", "time spent merging it"),
)

KPI_COLUMNS: tuple[Column, ...] = (
    Column("at", "time", "when the value was measured, UTC"),
    Column("expert", "text", "name of the expert"),
    Column("name", "text", "name of the business metric"),
    Column("value", "number", "its value then"),
    Column("unit", "text", "unit of the values"),
    Column("goal", "number", "what is aimed at"),
    Column("baseline", "number", "the value before the expert was in use"),
    Column("version", "count", "newest version that was published by then"),
    Column("wire_bytes", "count", "bytes of edge clients on the wire up to then, both directions"),
    Column("dense_bf16_bytes", "count", "the same transfers as dense bfloat16"),
)
"""Columns of the table of business metrics: a row a value."""


def kpi_rows(ledger: Ledger, expert: str | None = None, since_ms: int = 0) -> Iterator[dict[str, Any]]:
    """Every value of every business metric, with the bytes that its expert had moved by then. Times are milliseconds since 1970."""
    summaries = Summaries(ledger)
    for name in ledger.experts():
        series = ledger.kpis.series(name) if expert in (None, name) else []
        if not series:
            continue
        moved = [r for r in summaries.transfer_rows(name) if r["role"] == "edge"]
        published = Listings(ledger).version_facts(name)
        for found in series:
            for value in (v for v in found.values if v.at_ms >= since_ms):
                before = [r for r in moved if r["at_ms"] <= value.at_ms]
                yield {
                    "at": value.at_ms,
                    "expert": name,
                    "name": found.kpi.name,
                    "value": value.value,
                    "unit": found.kpi.unit or None,
                    "goal": found.kpi.goal,
                    "baseline": found.kpi.baseline,
                    "version": max((v.version for v in published if v.created_at_ms <= value.at_ms), default=None),
                    "wire_bytes": sum(r["wire_received_bytes"] + r["wire_sent_bytes"] for r in before),
                    "dense_bf16_bytes": sum(r["dense_fp32_bytes"] // 2 for r in before),
                }


def rows_of(ledger: Ledger, own: Sequence[PublicKey], expert: str | None = None, since_ms: int = 0) -> Iterator[dict[str, Any]]:
    """All transfers of an expert, or of all, oldest first. Times are milliseconds since 1970; an unknown value: None."""
    beside = {name: _Beside(ledger, own, name) for name in ledger.experts() if expert in (None, name)}
    for row in Summaries(ledger).transfer_rows(expert, since_ms):
        moved: dict[str, Any] = dict(row)
        facts = beside[moved["expert"]].at(moved["version"]) if moved["expert"] in beside else {}
        moved |= facts | {"at": moved["at_ms"], "dense_bf16_bytes": moved["dense_fp32_bytes"] // 2}
        yield {column.name: moved.get(column.name) for column in COLUMNS}


class _Beside:
    """The facts of one expert's versions, as columns."""

    def __init__(self, ledger: Ledger, own: Sequence[PublicKey], expert: str) -> None:
        summaries = Summaries(ledger)
        self._rows = {v: (read_origin(sealed, own, {}), s) for v, (sealed, s) in summaries.merge_times(expert).items()}
        self._metric = summaries.metrics().get(expert)
        self._scores = summaries.scores(expert, self._metric or "", "synced")
        base = summaries.newest_quality(expert, self._metric).base if self._metric else None
        self._base = base.score.mean if base else None

    def at(self, version: int) -> dict[str, Any]:
        """Those of one version; of one that is not published yet, only what does not depend on it."""
        score = self._scores.get(version)
        known: dict[str, Any] = {"metric": self._metric, "quality": score.mean if score else None, "quality_base": self._base}
        known["quality_reported_by"] = score.reporter or None if score else None
        return known | (_facts(*self._rows[version]) if version in self._rows else {})


def _facts(origin: Provenance, merge_seconds: float) -> dict[str, Any]:
    compression = origin.compression
    return {
        "version_origin": origin.kind or None,
        "version_density": compression.density if compression else None,
        "version_scale": compression.scale if compression else None,
        "version_codec": origin.codec or None,
        "version_method": origin.merge_method or None,
        "version_participants": len(origin.contributors) if not origin.doubt else None,
        "version_merge_seconds": merge_seconds,
    }


def to_csv(rows: Iterator[dict[str, Any]], columns: Sequence[Column] = COLUMNS) -> str:
    """The table as CSV with a header; times as ISO 8601. A cell that a spreadsheet would run as a formula begins with an apostrophe."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [column.name for column in columns], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _plain(value) for name, value in (row | {"at": iso(row["at"])}).items()})
    return out.getvalue()


def _plain(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def write_parquet(rows: Iterator[dict[str, Any]], path: Path, columns: Sequence[Column] = COLUMNS) -> None:
    """The table as a Parquet file; each column carries its description. Errors: InputError if pyarrow is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise InputError("Parquet needs pyarrow: pip install 'compeft[parquet]'") from error
    types = {"time": pa.timestamp("ms", tz="UTC"), "text": pa.string(), "count": pa.int64(), "number": pa.float64()}
    schema = pa.schema([pa.field(c.name, types[c.kind], metadata={"description": c.words}) for c in columns])
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, compression="zstd")
