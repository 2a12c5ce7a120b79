"""The report as one self-contained page: tables, and a picture of the task metric against wire bytes, drawn here as inline SVG.

Geometry is computed in Python and drawn by the template, which escapes every value. The page asks for nothing from outside and
runs no script: its content security policy forbids both.
"""

import statistics
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from compeft_server.domain.traffic import Score, add
from compeft_server.reports.figures import report as rp
from compeft_server.reports.figures.extras import Extras
from compeft_server.reports.figures.other_ways import other_costs
from compeft_server.reports.figures.report import Report
from compeft_server.reports.formats import text
from compeft_server.reports.formats.card_tables import labelled
from compeft_server.reports.formats.chart import NARROW, WIDE, curves_of, describe, draw
from compeft_server.reports.formats.kpi_chart import draw_kpi, human_value
from compeft_server.reports.formats.language import ENGLISH, Language
from compeft_server.reports.formats.summary import summary

TEMPLATES = Path(__file__).parent / "templates"
"""The report's templates, and the style sheet that the live page shares."""
MAX_REFUSALS = 25
"""Refusals that the page lists; all are counted."""


def environment(*folders: Path) -> Environment:
    """Templates of these folders, every value escaped, with the filters that turn numbers into words."""
    made = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(bytes=text.human_bytes, seconds=text.human_seconds, times=text.human_times)
    made.filters.update(printable=text.printable, moment=moment, sentence=sentence)
    made.filters["labelled"] = labelled
    made.filters.update(money=text.human_money, percent=text.human_percent)
    return made


def to_html(report: Report, extras: Extras = Extras(), say: Language = ENGLISH) -> str:  # noqa: B008  # frozen
    """The page, in one language."""
    older, shown = report.versions[: -text.MAX_VERSIONS], report.versions[-text.MAX_VERSIONS :]
    means = [run.score.mean for run in report.runs]
    curves = curves_of(report)
    charts = [chart for frame in (WIDE, NARROW) if (chart := draw(curves, frame)) is not None]
    return (
        environment(TEMPLATES)
        .get_template("report.html.j2")
        .render(
            report=report,
            extras=extras,
            older=older,
            older_up=add(row.up for row in older),
            older_down=add(row.down for row in older),
            shown=shown,
            deviation=None if report.deviation is None else text.human_spread(report.metric, report.deviation),
            runs_mean=statistics.fmean(means) if means else None,
            runs_deviation=text.human_spread(report.metric, statistics.stdev(means)) if len(means) > 1 else "–",
            refusals=report.refusals[-MAX_REFUSALS:],
            refused_by_code=Counter(refusal.code for refusal in report.refusals).most_common(),
            quality_at=lambda row: text.quality_at(report, row, say),
            charts=charts,
            curves=curves,
            description=describe(curves, say),
            t=say,
            language=say.code,
            summary=summary(report, extras.price, say),
            methods=text.METHODS,
            links=rp.link_times(report),
            rate=rp.measured_rate(report),
            kpis=[(s, c) for s in report.kpis if (c := draw_kpi(s, report.publications)) is not None],
            energy=text.energy_rows(report, extras.energy, say),
            kpi_value=human_value,
            other_costs=other_costs(report),
            other_ways_note=text.OTHER_WAYS_NOTE,
            budget_words="" if report.silence else text.budget_words(report, say),
            quality_of=text.quality_of(report, say),
            bits=text.human_bits,
            stated_by=lambda score: text.stated_by(score, say),
            uncompressed_name=text.uncompressed_name(None if report.dense else report.uncompressed, say),
            pool_cells=text.pool_cells,
            pool_columns=text.POOL_COLUMNS,
            training=text.training_words(report.training, say) if report.training else "",
            privacy="".join(text.privacy_words(extras)),
            cost_rows=text.cost_rows(report, extras.price, say) if extras.price else [],
            cost_columns=text.COST_COLUMNS,
            led_name=text.led_name(report, say),
            rate_name=lambda rate: text.rate_name(rate, say),
            verdict=text.verdict(report),
            dense_verdict=text.dense_verdict(report),
            value=lambda value: text.human_metric(report.metric, value),
            score=lambda score: text.human_score(report.metric, score),
            spread=lambda score: _spread(report.metric, score),
            row_savings=lambda row, size: rp.row_savings(report, row, size),
        )
    )


def _spread(metric: str, score: Score) -> str:
    """Lowest to highest, the unit once."""
    low, high = (text.human_metric(metric, value) for value in (score.low, score.high))
    return f"{low.removesuffix(' %')} – {high}"


def sentence(words: str) -> str:
    """The words with their first letter large."""
    return words[:1].upper() + words[1:]


def moment(at_ms: int) -> str:
    """A time in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
