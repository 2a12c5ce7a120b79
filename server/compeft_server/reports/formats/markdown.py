"""The report as Markdown: the same figures as the page, for a ticket, a wiki or a mail. No arithmetic on bytes here."""

from collections.abc import Iterable, Sequence

from compeft_server.reports.figures.extras import Extras
from compeft_server.reports.figures.other_ways import other_costs
from compeft_server.reports.figures.report import Report, link_times, measured_rate, row_savings
from compeft_server.reports.formats import text
from compeft_server.reports.formats.kpi_chart import human_value
from compeft_server.reports.formats.text import human_bytes, human_metric, human_score, human_seconds, human_times


def to_markdown(report: Report, extras: Extras = Extras()) -> str:  # noqa: B008  # frozen
    """The text; ends with a newline."""
    name = _cell(report.expert)
    parts = [f"# Bandwidth report: {name}", text.verdict(report), *_since(report), *_quality(report), *_versions(report)]
    parts += [
        *_kpis(report),
        *_time(report),
        *_other_ways(report),
        *_money(report, extras),
        *_energy(report, extras),
        *_densities(report, extras),
        *_gpu_use(report, extras),
        *_privacy(extras),
        *_how(),
    ]
    return "\n\n".join(parts) + "\n"


def _since(report: Report) -> list[str]:
    return [] if report.since_ms is None else [f"Bytes since {text.iso(report.since_ms)}."]


def _quality(report: Report) -> list[str]:
    final = report.final.score if report.final else None
    dense = human_score(report.metric, report.uncompressed) if report.uncompressed else "not measured"
    dense = human_metric(report.metric, report.dense.final) if report.dense else dense
    rows = [
        ("base only, zero bytes", human_score(report.metric, report.base)),
        (text.uncompressed_name(None if report.dense else report.uncompressed), dense),
    ]
    rows += [("compressed", f"{human_score(report.metric, final)}, {text.stated_by(final)}" if final else "unknown")]
    if final is not None and report.deviation is not None:
        low, high = (human_metric(report.metric, v) for v in (final.low, final.high))
        rows += [("over clients", f"{low} to {high}, standard deviation {text.human_spread(report.metric, report.deviation)}")]
    rows += [(f"run {_cell(r.run)}", human_score(report.metric, r.score)) for r in report.runs if len(report.runs) > 1]
    return ["## Quality", _table(("", report.metric), rows)]


def _versions(report: Report) -> list[str]:
    head = (
        "version",
        report.metric,
        "dense fp32",
        "payload up",
        "payload down",
        "wire",
        "fewer than fp32",
        "fewer than bf16",
        "clients",
    )
    rows = []
    for row in report.versions[-text.MAX_VERSIONS :]:
        t = row.traffic
        savings = [human_times(row_savings(report, row, size)) for size in (t.dense_fp32_bytes, t.dense_bf16_bytes)]
        sizes = (t.dense_fp32_bytes, row.up.payload_bytes, row.down.payload_bytes, t.wire_bytes)
        cells = [
            f"{row.version}",
            human_score(report.metric, row.score),
            *map(human_bytes, sizes),
            *savings,
            f"{row.participants}",
        ]
        rows.append(cells)
    t = report.traffic
    savings = [human_times(report.savings_fp32), human_times(report.savings_bf16)]
    final = human_score(report.metric, report.final.score if report.final else None)
    if report.stated is not None and not report.all_led:
        led = (report.led.dense_fp32_bytes, report.led_up.payload_bytes, report.led_down.payload_bytes, report.led.wire_bytes)
        score = human_score(report.metric, report.stated.score)
        rows.append([text.led_name(report), score, *map(human_bytes, led), *savings, ""])
        savings, final = ["–", "–"], "–"
    sizes = (t.dense_fp32_bytes, report.up.payload_bytes, report.down.payload_bytes, t.wire_bytes)
    rows.append(["total", final, *map(human_bytes, sizes), *savings, f"{len(report.clients)}"])
    return ["## Bytes", _table(head, rows)]


def _time(report: Report) -> list[str]:
    if report.silence:
        return []
    rows = [(t.link.name, *map(human_seconds, (t.dense_fp32, t.dense_bf16, t.wire))) for t in link_times(report)]
    rate, clients = measured_rate(report), max(1, len(report.clients))
    if rate:
        led = report.led
        sizes = (led.dense_fp32_bytes, led.dense_bf16_bytes, led.wire_bytes)
        rows.append((text.rate_name(rate), *(human_seconds(8 * size / rate / clients) for size in sizes)))
    return ["## Transfer time of one client", _table(("link", "dense fp32", "dense bf16", "wire"), rows)]


def _kpis(report: Report) -> list[str]:
    rows = [
        (
            s.kpi.name,
            *(human_value(v, s.kpi.unit) for v in (s.values[-1].value, s.kpi.goal, s.kpi.baseline)),
            text.iso(s.values[-1].at_ms),
        )
        for s in report.kpis
        if s.values
    ]
    return ["## Business metrics", _table(("", "newest", "goal", "baseline", "at"), rows)] if rows else []


def _other_ways(report: Report) -> list[str]:
    if report.silence:
        return []
    rows = [(c.way.name, human_bytes(c.payload_bytes), text.human_bits(c.way.bits), c.way.how) for c in other_costs(report)]
    own = (f"this run, payload, {text.quality_of(report)}", human_bytes(report.led.payload_bytes), "", "counted")
    head = ("", "bytes", "bits a parameter", "how")
    return [
        "## What other ways would have moved",
        f"{text.OTHER_WAYS_NOTE}",
        _table(head, [*rows, own]),
        text.budget_words(report),
    ]


def _money(report: Report, extras: Extras) -> list[str]:
    price = extras.price
    if price is None:
        return ["## Money", "No price was given: --price-per-gb."]
    head = f"## Money, at {text.human_money(price.per_gb, price.currency)} a GB"
    return [head, _table(text.COST_COLUMNS, text.cost_rows(report, price))]


def _energy(report: Report, extras: Extras) -> list[str]:
    rows = text.energy_rows(report, extras.energy)
    return ["## Energy", _table(("", "dense fp32", "dense bf16", "wire"), rows)] if rows else []


def _densities(report: Report, extras: Extras) -> list[str]:
    if not extras.densities:
        return []
    rows = [
        (
            text.human_percent(row.density),
            human_bytes(row.payload_bytes),
            human_times(row.dense_bf16_bytes / row.payload_bytes),
            text.quality_at(report, row),
        )
        for row in extras.densities
    ]
    return ["## At other densities", _table(("density", "one update", "fewer than bf16", "quality"), rows)]


def _gpu_use(report: Report, extras: Extras) -> list[str]:
    if not report.pools and report.training is None:
        return _pool(extras)
    rows = [text.pool_cells(pool) for pool in report.pools]
    parts = ["## GPU use"] + ([_table(text.POOL_COLUMNS, rows)] if rows else [])
    return (
        parts + ([text.training_words(report.training)] if report.training else []) + (_pool(extras)[1:] if extras.pool else [])
    )


def _pool(extras: Extras) -> list[str]:
    pool = extras.pool
    if pool is None:
        return ["## GPU use", "Not measured: `compeft bench pool -o pool.json`, then --pool pool.json."]
    rows = [
        ("experts in a GB of memory", f"{pool.experts_per_gb:,.0f}", f"{pool.bf16_experts_per_gb:,.0f}"),
        ("time to switch", human_seconds(pool.switch_s), human_seconds(pool.bf16_hotswap_s)),
    ]
    return [f"## GPU use, measured on {_cell(pool.device)}", _table(("", "packed", "bfloat16"), rows)]


def _privacy(extras: Extras) -> list[str]:
    return ["## Privacy", *map(_cell, text.privacy_words(extras))] if extras.privacy else []


def _how() -> list[str]:
    return ["## How each figure was computed", "\n".join(f"- **{name}**: {words}" for name, words in text.METHODS)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(words: str) -> str:
    return text.printable(words).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
