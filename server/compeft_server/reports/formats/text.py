"""The report for people: numbers with units, verdicts in one sentence, and the table for a terminal. No arithmetic on bytes here."""

import math
from datetime import UTC, datetime

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from compeft_server.domain.kpi import KpiSeries
from compeft_server.domain.price import Energy, Price
from compeft_server.domain.traffic import Score, Traffic, add
from compeft_server.privacy.words import account_line
from compeft_server.reports.figures.cost import Cost, CostRow, cost_by_site, cost_by_tenant, whole_cost
from compeft_server.reports.figures.extras import DensityRow, Extras
from compeft_server.reports.figures.gpu_use import MeasuredPool, TrainingUse
from compeft_server.reports.figures.other_ways import budget_shares
from compeft_server.reports.figures.report import DenseArm, Report, row_savings
from compeft_server.reports.formats.language import ENGLISH, Say

SMALL_SUM = 0.01
"""Below this an amount is said for 1,000 rounds."""


def human_bytes(count: float) -> str:
    """Three digits and a decimal unit: 62.4 kB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{_digits(count) if unit != 'B' else f'{count:.0f}'} {unit}"
        count /= 1000
    return f"{_digits(count)} TB"


def human_seconds(seconds: float) -> str:
    """Three digits and a unit up to minutes: 240 ms, 1.85 s, 12.5 min."""
    if seconds < 0.9995:
        return f"{_digits(1000 * seconds)} ms" if seconds else "0 s"
    return f"{_digits(seconds)} s" if seconds < 600 else f"{_digits(seconds / 60)} min"


def human_times(ratio: float | None) -> str:
    """A saving as 47.3×, a dash for none."""
    return "–" if ratio is None else f"{_digits(ratio)}×"


def human_metric(metric: str, value: float | None) -> str:
    """An accuracy in percent, anything else as a number, a dash for none."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:.4g}"


def human_change(metric: str, value: float, other: float) -> str:
    """A difference of a metric with its sign: points of percent for an accuracy."""
    words = f"{100 * (value - other):+.1f} points" if metric == "accuracy" else f"{value - other:+.4g}"
    return words.replace("-", "\u2212", 1)


def human_score(metric: str, score: Score | None) -> str:
    """The mean of a score as `human_metric`."""
    return human_metric(metric, score.mean if score else None)


def stated_by(score: Score, say: Say = ENGLISH) -> str:
    """Who a score comes from: clients that measured it, or a publisher whose word it is."""
    if score.reporter:
        return str(say("reported by {name}, not measured", name=printable(score.reporter)))
    return str(say("measured by {clients} client(s)", clients=score.clients))


POOL_COLUMNS = (
    "member",
    "device",
    "experts in memory",
    "bytes",
    "as bfloat16",
    "switches",
    "without a file",
    "time to switch",
    "decoding",
    "device memory",
)


def pool_cells(pool: MeasuredPool) -> tuple[str, ...]:
    """One pool under POOL_COLUMNS."""
    use = pool.use
    return (
        f"{printable(pool.member)}, {printable(use.engine)}",
        printable(use.device),
        f"{use.resident:,} of {use.known:,}",
        human_bytes(use.resident_bytes),
        human_bytes(use.dense_bf16_bytes),
        f"{use.switches:,}",
        "–" if use.hit_share is None else human_percent(use.hit_share),
        "–" if use.switch_s is None else human_seconds(use.switch_s),
        human_seconds(use.decode_seconds),
        human_bytes(use.device_memory_bytes) if use.device_memory_bytes else "–",
    )


def training_words(training: TrainingUse, say: Say = ENGLISH) -> str:
    """What updates say of their training, in a sentence."""
    seconds = "–" if training.mean_seconds is None else human_seconds(training.mean_seconds)
    host = human_bytes(training.peak_host_bytes) if training.peak_host_bytes else "–"
    values = {"updates": training.updates, "seconds": seconds, "host": host}
    if not training.peak_gpu_bytes:
        words = "Training, as {updates} update(s) state: {seconds} on average without a GPU, at most {host} of the process."
        return str(say(words, **values))
    words = "Training, as {updates} update(s) state: {seconds} on average, at most {gpu} on the GPU and {host} of the process."
    return str(say(words, gpu=human_bytes(training.peak_gpu_bytes), **values))


def uncompressed_name(score: Score | None, say: Say = ENGLISH) -> str:
    """What the uncompressed figure is of: a dense peer, or each client's own update."""
    return str(say("uncompressed, each client's own update" if score is not None and score.own else "uncompressed"))


def human_percent(share: float) -> str:
    """A density as 5 % or 0.25 %."""
    return f"{100 * share:.3g} %"


def human_money(amount: float, currency: str) -> str:
    """An amount with its currency: 12.34 EUR, 0.0042 EUR; more digits the less it is."""
    decimals = 2 if abs(amount) >= 1 or not amount else min(8, 2 - math.floor(math.log10(abs(amount))))
    return f"{amount:,.{decimals}f} {printable(currency)}"


def human_cost(amount: float, rounds: int, currency: str, say: Say = ENGLISH) -> str:
    """An amount; a small one as what 1,000 rounds would cost, so that nobody reads six zeros."""
    if not rounds or not 0 < abs(amount) < SMALL_SUM:
        return human_money(amount, currency)
    return str(say("{amount} per 1,000 rounds", amount=human_money(1000 * amount / rounds, currency)))


MAX_COST_ROWS = 50
"""Sites whose cost a page or a text lists, the dearest; JSON has all."""


def cost_rows(report: Report, price: Price, say: Say = ENGLISH) -> list[tuple[str, ...]]:
    """(name, price a GB, wire bytes, dense bf16 bytes, cost as bf16, cost of the wire): the whole, tenants, sites."""
    sites = cost_by_site(report, price)
    tenants = cost_by_tenant(sites) if any(site.tenant for site in sites) else ()
    whole, moved = whole_cost(report, price), report.traffic

    def money(cost: Cost) -> tuple[str, str]:
        return (
            human_cost(cost.dense_bf16, report.rounds, price.currency, say),
            human_cost(cost.wire, report.rounds, price.currency, say),
        )

    def row(name: str, found: CostRow) -> tuple[str, ...]:
        at = "–" if found.per_gb is None else human_money(found.per_gb, price.currency)
        return (name, at, human_bytes(found.wire_bytes), human_bytes(found.dense_bf16_bytes), *money(found.cost))

    at = human_money(price.per_gb, price.currency) if not price.tariffs else "–"
    rows: list[tuple[str, ...]] = [
        (str(say("all clients")), at, human_bytes(moved.wire_bytes), human_bytes(moved.dense_bf16_bytes), *money(whole))
    ]
    rows += [row(str(say("tenant {name}, {sites} site(s)", name=printable(t.name), sites=t.sites)), t) for t in tenants]
    dearest = sorted(sites, key=lambda s: -s.cost.wire)[:MAX_COST_ROWS]
    links = {s.name: f", {printable(s.link)}" if s.link else "" for s in dearest}
    return rows + [row(f"{printable(s.name)}{links[s.name]}", s) for s in dearest]


COST_COLUMNS = ("", "a GB", "wire", "dense bf16", "cost as dense bf16", "cost of the wire")


def energy_rows(report: Report, energy: Energy | None, say: Say = ENGLISH) -> list[tuple[str, str, str, str]]:
    """(name with its factor, dense fp32, dense bf16, wire) in Wh and g of CO2; the factors are the operator's own."""
    if energy is None:
        return []
    t = report.traffic
    sizes = (t.dense_fp32_bytes, t.dense_bf16_bytes, t.wire_bytes)
    name = say("energy, {factor} kWh a GB (given by the operator)", factor=f"{energy.kwh_per_gb:g}")
    fp32, bf16, wire = (f"{1000 * energy.kwh(size):.3g} Wh" for size in sizes)
    rows = [(str(name), fp32, bf16, wire)]
    if energy.co2_g_per_kwh is not None:
        name = say("CO2, {factor} g a kWh (given by the operator)", factor=f"{energy.co2_g_per_kwh:g}")
        fp32, bf16, wire = (f"{energy.co2_g(size) or 0:.3g} g" for size in sizes)
        rows.append((str(name), fp32, bf16, wire))
    return rows


def iso(at_ms: int) -> str:
    """A time in UTC, ISO 8601, as programs read it."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def human_spread(metric: str, deviation: float) -> str:
    """A standard deviation of a metric: points of percent for an accuracy."""
    return f"{100 * deviation:.2g} points" if metric == "accuracy" else f"{deviation:.3g}"


def quality_at(report: Report, row: DensityRow, say: Say = ENGLISH) -> str:
    """What is known of the task metric at a density."""
    final = report.final.score if report.final else None
    if not row.used:
        return str(say("unknown: not measured at this density"))
    used = say(row.used)
    if final is None:
        return str(say("unknown (in use, {used})", used=used))
    score = human_score(report.metric, final)
    if not final.reporter:
        return str(say("{score}, measured (in use, {used})", score=score, used=used))
    return str(say("{score}, {source} (in use, {used})", score=score, source=stated_by(final, say), used=used))


def human_bits(bits: float) -> str:
    """Bits a parameter in three digits: 32, 4.5, 0.219."""
    return f"{bits:.3g}"


def quality_of(report: Report, say: Say = ENGLISH) -> str:
    """The metric that stands beside the saving, and its source; empty where no saving is stated."""
    stated = report.stated.score if report.stated else None
    return "" if stated is None else f"{printable(report.metric)} {human_score(report.metric, stated)}, {stated_by(stated, say)}"


OTHER_WAYS_NOTE = (
    "Computed, not measured: the parameters that were moved here, times the bits that each way needs for one. Without framing; the task "
    "metric that the other ways would have reached is unknown."
)


def budget_words(report: Report, say: Say = ENGLISH) -> str:
    """What part of FlowerTune's budget of communication the run takes, by its tracker's counting and by ours."""
    by_tracker, counted = (
        np.format_float_positional(100 * share, precision=2, fractional=False, trim="-") for share in budget_shares(report)
    )
    return str(
        say(
            "Of FlowerTune's budget of 200,000 MB a run: {tracker} % by its tracker's counting, {counted} % by the payload counted here.",
            tracker=by_tracker,
            counted=counted,
        )
    )


def rate_name(rate: float, say: Say = ENGLISH) -> str:
    """A measured upload rate in bit/s, as the name of a row."""
    return str(say("measured upload rate, {rate} Mbit/s", rate=f"{rate / 1e6:.3g}"))


def printable(text: str) -> str:
    """The text without control and direction characters: names and reasons come from outside."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _digits(value: float) -> str:
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{decimals}f}"


MAX_VERSIONS = 100
"""Versions that have a row of their own on a page; older ones are summed up in one."""
METHODS = (
    (
        "wire",
        "bytes that the kernel counted on the aggregator's TCP sockets: TLS, HTTP/2 and gRPC framing in, TCP/IP headers not. "
        "Calls that were refused or cut off count too.",
    ),
    ("payload", "the encoded parameters alone."),
    (
        "dense",
        "what the same transfers would carry uncompressed: parameters × 4 bytes (fp32) or × 2 (bf16) a transfer, unframed.",
    ),
    (
        "fewer bytes",
        "dense / wire of the bytes that led to a version of known quality: of a composed expert all up to it, of a package its own.",
    ),
    (
        "quality",
        "mean over clients, each on its own test rows, weighted by their number, at the newest version that was measured; "
        "of a package what its publisher reported, which nobody here has measured.",
    ),
    (
        "transfer time",
        "an average client's bytes over the link's rate, without latency. The measured rate is that of uploads between one message and the "
        "next, so waiting is not in it; uploads of one message (256 KiB) have none.",
    ),
    (
        "version rows",
        "up: the uploads that were made for this version; down: the deliveries of it. (open): its round has not closed. The rows add up to "
        "the total.",
    ),
    (
        "spread",
        "over clients: lowest, highest and standard deviation at the newest measured version; over runs: each at its newest version.",
    ),
    ("refused", "submissions and syncs that were turned away since the round of the version opened."),
    (
        "money",
        "bytes times the price that was given, or the tariff of the site's link; a GB is 10^9 bytes. Sums under 0.01 are stated per "
        "1,000 rounds. Tenants are labels of members.",
    ),
    (
        "other densities",
        "a real encoding of this layout by codec rice, at positions without a pattern; codec context needs a sixth to a tenth less.",
    ),
    (
        "GPU use",
        "counted by the members' own pools since each began, and told to the aggregator; or what compeft bench pool measured on the "
        "device that it names. Training: metrics of the newest signed updates. Never derived from bytes.",
    ),
)
"""How each figure was computed, for people."""
_COLUMNS = ("dense\nfp32", "dense\nbf16", "payload\nup", "payload\ndown", "wire\nup", "wire\ndown", "vs\nfp32", "vs\nbf16")


NOTHING_BESIDE = Extras()


def to_table(report: Report, extras: Extras = NOTHING_BESIDE) -> RenderableType:
    """What `rich` prints: one row a version, base only and uncompressed beside them, then the totals in words, and what they cost and what
    a pool measured if that is given. Fits 80 columns.
    """
    table = Table(
        title=Text(f"expert {printable(report.expert)}", "bold"),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        show_edge=False,
        padding=0,
    )
    table.add_column("version", no_wrap=True)
    metric = _hyphenated(printable(report.metric), 10 if report.uncompressed is None else 7)
    for name in (metric, *_COLUMNS):
        table.add_column(Text(name), justify="right", no_wrap=True)
    table.add_row("base only", human_score(report.metric, report.base), *["0 B"] * 6, "–", "–")
    if report.uncompressed is not None:
        table.add_row(
            "own update" if report.uncompressed.own else "uncompressed",
            human_score(report.metric, report.uncompressed),
            *["–"] * len(_COLUMNS),
        )
    for row in report.versions:
        name = f"{row.version}" if row.published else f"{row.version} (open)"
        savings = [row_savings(report, row, size) for size in (row.traffic.dense_fp32_bytes, row.traffic.dense_bf16_bytes)]
        table.add_row(name, human_score(report.metric, row.score), *_cells(row.up, row.down), *map(human_times, savings))
    table.add_section()
    final = report.final.score if report.final else None
    savings = [report.savings_fp32, report.savings_bf16]
    if report.stated is not None and not report.all_led:
        score = human_score(report.metric, report.stated.score)
        table.add_row(led_name(report), score, *_cells(report.led_up, report.led_down), *map(human_times, savings))
        savings, final = [None, None], None
    table.add_row(
        "total", human_score(report.metric, final), *_cells(report.up, report.down), *map(human_times, savings), style="bold"
    )
    if report.dense is not None:
        table.add_row(*_dense_cells(report.dense))
    energy = [
        f"{name}: wire {wire}; dense fp32 {fp32}, bf16 {bf16}" for name, fp32, bf16, wire in energy_rows(report, extras.energy)
    ]
    return Group(
        table,
        *(
            Text(line)
            for line in [
                *_lines(report),
                *_money(report, extras),
                *energy,
                *_pool(extras),
                *_measured(report),
                *privacy_words(extras),
            ]
        ),
    )


def _hyphenated(name: str, width: int) -> str:
    """`name` in lines of at most `width` characters, such as accu-, racy."""
    if len(name) <= width:
        return name
    lines = -(-(len(name) - 1) // (width - 1))
    size = -(-len(name) // lines)
    return "-\n".join(name[at : at + size] for at in range(0, len(name), size))


def led_name(report: Report, say: Say = ENGLISH) -> str:
    """The bytes that led to the stated version, as the name of a row."""
    if report.stated is None:
        return ""
    return str(say("version {version}" if report.kind == "package" else "up to {version}", version=report.stated.version))


def _cells(up: Traffic, down: Traffic) -> list[str]:
    both = add((up, down))
    sizes = (both.dense_fp32_bytes, both.dense_bf16_bytes, up.payload_bytes, down.payload_bytes, up.wire_bytes, down.wire_bytes)
    return [human_bytes(size) for size in sizes]


def _dense_cells(dense: DenseArm) -> list[str]:
    sizes = [human_bytes(dense.dense_fp32_bytes), human_bytes(dense.dense_fp32_bytes // 2)]
    return ["dense run", human_metric(dense.metric, dense.final), *sizes, "–", "–", "–", "–", "–", "–"]


def _lines(report: Report) -> list[str]:
    traffic = report.traffic
    lines = [
        f"clients {len(report.clients)}, rounds {report.rounds}, refused {len(report.refusals)}, {human_seconds(report.seconds)}",
        f"{human_bytes(traffic.wire_bytes)} on the wire: {human_bytes(traffic.wire_received_bytes)} to the aggregator, "
        f"{human_bytes(traffic.wire_sent_bytes)} from it"
        + (
            f"; {human_bytes(report.operator_wire_bytes)} of conductors and readers beside that"
            if report.operator_wire_bytes
            else ""
        ),
        *_relayed(traffic),
        verdict(report),
    ]
    lines += [_kpi_line(s) for s in report.kpis if s.values]
    return [*lines, dense_verdict(report)] if report.dense else lines


def _kpi_line(series: KpiSeries) -> str:
    kpi, unit = series.kpi, f" {printable(series.kpi.unit)}" if series.kpi.unit else ""
    beside = "".join(f", {name} {v:g}{unit}" for name, v in (("goal", kpi.goal), ("baseline", kpi.baseline)) if v is not None)
    return f"{printable(kpi.name)}: {series.values[-1].value:g}{unit}{beside}"


def _money(report: Report, extras: Extras) -> list[str]:
    price = extras.price
    if price is None:
        return []
    whole = whole_cost(report, price)
    wire, fp32, bf16 = (
        human_cost(cost, report.rounds, price.currency) for cost in (whole.wire, whole.dense_fp32, whole.dense_bf16)
    )
    lines = [f"at {human_money(price.per_gb, price.currency)} a GB: {wire} on the wire; dense fp32 {fp32}, bf16 {bf16}"]
    return lines + [f"{name}: {cost} (dense bf16 {dense})" for name, _, _, _, dense, cost in cost_rows(report, price)[1:]]


def _pool(extras: Extras) -> list[str]:
    pool = extras.pool
    if pool is None:
        return []
    return [
        f"on {printable(pool.device)}: {pool.experts_per_gb:,.0f} experts a GB (bfloat16 {pool.bf16_experts_per_gb:,.0f}), "
        f"{human_seconds(pool.switch_s)} to switch (bfloat16 {human_seconds(pool.bf16_hotswap_s)})"
    ]


def privacy_words(extras: Extras) -> list[str]:
    """What members have spent of their privacy, in a line; none of an expert without private rounds."""
    return [printable(account_line(extras.privacy))] if extras.privacy else []


def _measured(report: Report) -> list[str]:
    """Pools and training, a line each."""
    lines = [
        f"{printable(p.member)}, {printable(p.use.device)}: {p.use.resident:,} of {p.use.known:,} experts in memory, "
        f"{human_bytes(p.use.resident_bytes)} (bfloat16 {human_bytes(p.use.dense_bf16_bytes)}), {p.use.switches:,} switches"
        for p in report.pools
    ]
    return lines + ([training_words(report.training)] if report.training else [])


def _relayed(traffic: Traffic) -> list[str]:
    if not traffic.relayed_bytes:
        return []
    return [
        f"{human_bytes(traffic.relayed_bytes)} of the clients' bytes travelled on inside Flower's messages (Plan(relay=True))"
    ]


def verdict(report: Report) -> str:
    """The saving and its quality in one sentence, or why no saving is stated."""
    stated = report.stated
    if report.silence or stated is None or stated.score is None:
        return report.silence
    fp32, bf16 = human_times(report.savings_fp32), human_times(report.savings_bf16)
    final, base = human_score(report.metric, stated.score), human_score(report.metric, report.base)
    beside = f"base only {base}" if report.base else "base only not reported"
    whole = report.uncompressed
    beside += f", {uncompressed_name(whole)} {human_score(report.metric, whole)}" if whole else ""
    words = (
        f"{fp32} fewer bytes than dense fp32, {bf16} than bf16, at {report.metric} {final} ({beside}), version {stated.version}"
    )
    part = (
        ""
        if report.all_led
        else f"; of {human_bytes(report.led.wire_bytes)} of {human_bytes(report.traffic.wire_bytes)} on the wire"
    )
    return f"{words}, {stated_by(stated.score)}{part}"


def dense_verdict(report: Report) -> str:
    """The same beside the dense run that was measured."""
    if report.dense is None:
        return ""
    final = human_metric(report.metric, report.dense.final)
    words = f"dense run: {human_bytes(report.dense.wire_bytes)} counted, {report.metric} {final}"
    saving, kept = report.savings_measured, report.retained_gain
    words += f"; {human_times(saving)} fewer bytes than it" if saving else ""
    return words + (f", {100 * kept:.0f} % of its gain over base only kept" if saving and kept is not None else "")
