"""The bandwidth report of one expert: what the ledger's facts add up to, as a frozen value.

build.py makes it; this module only does arithmetic. The report's bytes are the transfers of edge clients; those of conductors and
readers are summed apart. Invariants: the rows of versions and the rows of clients both add up to the totals. A saving is stated only of
the bytes that led to a version of known quality, beside that quality; otherwise `silence` says why.
"""

from dataclasses import dataclass

from compeft_server.domain.kpi import KpiSeries
from compeft_server.domain.records import Kind, Refusal
from compeft_server.domain.traffic import LinkTime, Score, Traffic, add, times_of, why_row_silent, why_silent
from compeft_server.reports.figures.gpu_use import MeasuredPool, TrainingUse

MIN_GAIN = 0.01
"""Smallest dense - base of which a retained share is stated: below one point the quotient is noise."""


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version: what it cost to make (up) and to deliver (down), and how good it is. Unpublished: its round has not closed."""

    version: int
    published: bool
    score: Score | None
    up: Traffic
    down: Traffic
    cumulative_wire_bytes: int
    participants: int
    refused: int
    merge_seconds: float
    created_at_ms: int | None = None

    @property
    def traffic(self) -> Traffic:
        """Both directions."""
        return add((self.up, self.down))


@dataclass(frozen=True, slots=True)
class Publication:
    """When a version was published (ms since 1970), and the bytes of it in both directions: on the wire, and as dense bfloat16."""

    version: int
    at_ms: int
    wire_bytes: int
    dense_bf16_bytes: int


@dataclass(frozen=True, slots=True)
class ClientRow:
    """One edge client; `first` and `last` are its own metric at the first and the last version it measured. tenant, link: its label."""

    name: str
    keyid: str
    up: Traffic
    down: Traffic
    base: float | None
    first: float | None
    last: float | None
    tenant: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class RunRow:
    """The newest measurement of one run (a seed, say), over its clients."""

    run: str
    version: int
    score: Score


@dataclass(frozen=True, slots=True)
class DenseArm:
    """What a plain dense run of the same task measured. `metrics[v]` is the metric after v rounds, None where it has none.

    dense_fp32_bytes: what its arrays are as float32. wire_bytes: what was counted, and `counted` says in words how. base: its own
    measurement of the base model, None to use the report's.
    """

    metric: str
    metrics: tuple[float | None, ...]
    clients: int
    dense_fp32_bytes: int
    wire_bytes: int
    seconds: float
    counted: str
    base: float | None = None

    @property
    def rounds(self) -> int:
        """How many rounds it ran."""
        return len(self.metrics) - 1

    @property
    def final(self) -> float | None:
        """The newest metric."""
        return next((value for value in reversed(self.metrics) if value is not None), None)

    def wire_bytes_after(self, rounds: int) -> int:
        """Its wire bytes spread evenly over its rounds."""
        return round(self.wire_bytes * rounds / self.rounds) if self.rounds else self.wire_bytes


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a page or a table shows about one expert. deviation: standard deviation over clients at the newest measured version,
    None of fewer than two. uncompressed: what the ledger holds of a dense peer, or else of each client's own update.
    first_ms, last_ms: when the first and the last transfer began, None if there was none.
    since_ms: bytes before it are left out; the quality is what was measured last, whenever that was.
    """

    expert: str
    parameters: int
    metric: str
    base: Score | None
    versions: tuple[VersionRow, ...]
    clients: tuple[ClientRow, ...]
    refusals: tuple[Refusal, ...]
    up: Traffic
    down: Traffic
    operator_wire_bytes: int
    rounds: int
    seconds: float
    dense: DenseArm | None
    runs: tuple[RunRow, ...] = ()
    deviation: float | None = None
    since_ms: int | None = None
    uncompressed: Score | None = None
    kind: Kind = "composed"
    first_ms: int | None = None
    last_ms: int | None = None
    kpis: tuple[KpiSeries, ...] = ()
    pools: tuple[MeasuredPool, ...] = ()
    training: TrainingUse | None = None

    @property
    def traffic(self) -> Traffic:
        """Both directions."""
        return add((self.up, self.down))

    @property
    def publications(self) -> list[Publication]:
        """Every published version of the report, oldest first."""
        return [
            Publication(row.version, row.created_at_ms, row.traffic.wire_bytes, row.traffic.dense_bf16_bytes)
            for row in self.versions
            if row.created_at_ms is not None
        ]

    @property
    def final(self) -> VersionRow | None:
        """The newest version with a metric."""
        return next((row for row in reversed(self.versions) if row.score is not None), None)

    @property
    def stated(self) -> VersionRow | None:
        """The version whose quality stands beside the saving: the newest with a metric; of a package, the newest that was also fetched."""
        rows = (row for row in reversed(self.versions) if row.score is not None)
        return next((row for row in rows if self.kind == "composed" or row.down.payload_bytes), None)

    @property
    def led_up(self) -> Traffic:
        """Uploads that led to the stated version: of a composed expert those of all versions up to it, of a package its own."""
        return add(row.up for row in self._led())

    @property
    def led_down(self) -> Traffic:
        """Deliveries that led to the stated version, or delivered it."""
        return add(row.down for row in self._led())

    @property
    def led(self) -> Traffic:
        """Both directions of what led to the stated version."""
        return add((self.led_up, self.led_down))

    @property
    def all_led(self) -> bool:
        """Whether all bytes of the report led to the stated version."""
        return self.led.wire_bytes == self.traffic.wire_bytes

    def _led(self) -> list[VersionRow]:
        stated = self.stated
        if stated is None:
            return []
        return [
            row
            for row in self.versions
            if row.version == stated.version or (self.kind == "composed" and row.version < stated.version)
        ]

    @property
    def wire_counted(self) -> bool:
        """Whether the wire was counted: no client's wire bytes are fewer than its payload, and some were counted."""
        clients = [add((c.up, c.down)) for c in self.clients]
        return self.traffic.wire_bytes > 0 and all(c.wire_bytes >= c.payload_bytes for c in clients)

    @property
    def silence(self) -> str:
        """Why no saving is stated, in words; empty when one is."""
        why = why_silent(self.traffic.dense_fp32_bytes, self.wire_counted, self.final is not None)
        if why or self.final is None or self.stated is not None:
            return why
        return "No client has fetched a version of known quality, so no saving is stated."

    @property
    def savings_fp32(self) -> float | None:
        """Dense float32 / wire of the bytes that led to the stated version, None where `silence` says why."""
        return self.savings(self.led.dense_fp32_bytes)

    @property
    def savings_bf16(self) -> float | None:
        """The same against bfloat16."""
        return self.savings(self.led.dense_bf16_bytes)

    def savings(self, dense_bytes: int) -> float | None:
        """`dense_bytes` / wire bytes that led to the stated version, None where `silence` says why."""
        return None if self.silence or not self.led.wire_bytes else dense_bytes / self.led.wire_bytes

    @property
    def savings_measured(self) -> float | None:
        """Wire of the dense run / wire, None unless both had as many clients and rounds."""
        if self.dense is None or (self.dense.clients, self.dense.rounds) != (len(self.clients), self.rounds):
            return None
        return self.savings(self.dense.wire_bytes)

    @property
    def retained_gain(self) -> float | None:
        """(compressed - base) / (dense - base); None unless the dense run gained at least MIN_GAIN."""
        if self.dense is None or self.dense.final is None or self.base is None or self.final is None or self.final.score is None:
            return None
        base = self.base.mean if self.dense.base is None else self.dense.base
        gain = self.dense.final - base
        return (self.final.score.mean - self.base.mean) / gain if gain >= MIN_GAIN else None


# Transfer time


def link_times(report: Report) -> list[LinkTime]:
    """One row a named link, for an average client: the bytes that led to the stated version."""
    return times_of(report.led_up, report.led_down, max(1, len(report.clients)))


def measured_rate(report: Report) -> float | None:
    """Measured upload rate in bit/s, over bytes that flowed; None where no upload was longer than one message."""
    return report.up.rate


def row_savings(report: Report, row: VersionRow, dense_bytes: int) -> float | None:
    """Dense / wire of one version, None where it has no quality to put beside it."""
    measured = row.score is not None and report.wire_counted
    silent = why_row_silent(report.kind, row.version, row.up, row.down, measured)
    return None if silent else dense_bytes / row.traffic.wire_bytes
