"""The bandwidth report of one expert: what the ledger's facts add up to, as a frozen value.

`read_report` is the only function that reads the ledger; everything after it is arithmetic. Only the transfers of edge clients
are the report's bytes, those of conductors and readers are summed apart. Invariants: the rows of versions and the rows of clients
both add up to the totals, and a saving is never stated without its quality: where none was reported, or the wire was not
counted, words stand in its place.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from compeft_core.errors import InputError
from compeft_proto.errors import UnknownExpertError
from compeft_server.facts import Arm, Expert, Member, Quality, Refusal, Round, Submission, Transfer, Version
from compeft_server.ledger import Ledger

MIN_GAIN = 0.01
"""Smallest dense - base of which a retained share is stated: below one point the quotient is noise."""


@dataclass(frozen=True, slots=True)
class Link:
    """A named link and its rates in bit/s, seen from the edge client."""

    name: str
    up: float
    down: float


LINKS = (
    Link("10 Mbit/s", 10e6, 10e6),
    Link("100 Mbit/s", 100e6, 100e6),
    Link("4G, 5 Mbit/s up, 20 Mbit/s down", 5e6, 20e6),
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """A sum of transfers. dense: the same parameters uncompressed; received and sent are seen from the aggregator."""

    dense_fp32_bytes: int = 0
    payload_bytes: int = 0
    wire_received_bytes: int = 0
    wire_sent_bytes: int = 0
    seconds: float = 0.0

    @property
    def dense_bf16_bytes(self) -> int:
        """The same parameters as bfloat16."""
        return self.dense_fp32_bytes // 2

    @property
    def wire_bytes(self) -> int:
        """Both ways on the socket: a call's acknowledgements and heads are part of its price."""
        return self.wire_received_bytes + self.wire_sent_bytes


@dataclass(frozen=True, slots=True)
class Score:
    """A task metric over clients: the mean weighted by test examples, the smallest and the largest."""

    mean: float
    low: float
    high: float
    clients: int


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

    @property
    def traffic(self) -> Traffic:
        """Both directions."""
        return add((self.up, self.down))


@dataclass(frozen=True, slots=True)
class ClientRow:
    """One edge client; `first` and `last` are its own metric at the first and the last version it measured."""

    name: str
    keyid: str
    up: Traffic
    down: Traffic
    base: float | None
    first: float | None
    last: float | None


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
    """Everything a page or a table shows about one expert."""

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

    @property
    def traffic(self) -> Traffic:
        """Both directions."""
        return add((self.up, self.down))

    @property
    def final(self) -> VersionRow | None:
        """The newest version with a metric."""
        return next((row for row in reversed(self.versions) if row.score is not None), None)

    @property
    def wire_counted(self) -> bool:
        """Whether the wire bytes can be believed: no client's are fewer than its payload, and some were counted."""
        clients = [add((c.up, c.down)) for c in self.clients]
        return self.traffic.wire_bytes > 0 and all(c.wire_bytes >= c.payload_bytes for c in clients)

    @property
    def silence(self) -> str:
        """Why no saving is stated, in words; empty when one is."""
        return why_silent(self.traffic.dense_fp32_bytes, self.wire_counted, self.final is not None)

    def savings(self, dense_bytes: int) -> float | None:
        """Dense / wire over the whole log, None where `silence` says why."""
        return None if self.silence else dense_bytes / self.traffic.wire_bytes

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


def why_silent(dense_bytes: int, wire_counted: bool, measured: bool) -> str:
    """Why no saving may be stated, in words; empty when one may."""
    if not dense_bytes:
        return "No transfer of an edge client was recorded yet, so there is no saving to state."
    if not wire_counted:
        return "The wire was not counted on this aggregator (it needs Linux), so no saving is stated."
    return (
        ""
        if measured
        else "No quality was reported for any version of this expert, so no saving is stated: bytes alone say nothing."
    )


# From the ledger to a Report


@dataclass(frozen=True, slots=True)
class Records:
    """The ledger's rows of one expert, as they were read."""

    expert: Expert
    members: Sequence[Member]
    versions: Sequence[Version]
    rounds: Sequence[Round]
    submissions: Sequence[Submission]
    transfers: Sequence[Transfer]
    refusals: Sequence[Refusal]
    quality: Sequence[Quality]


def read_report(ledger: Ledger, expert: str, dense: DenseArm | None = None, seconds: float | None = None) -> Report:
    """The report of one expert; `seconds` replaces the time from the first to the last transfer.

    Refusals that named no expert, because they came before their message could be trusted, are listed with those that did.
    Errors: UnknownExpertError; InputError if the dense arm measured another metric.
    """
    found = ledger.expert(expert)
    if found is None:
        raise UnknownExpertError(f"no expert {expert[:40]!a} here; there are: {', '.join(ledger.experts()) or 'none'}")
    rounds = ledger.rounds(expert)
    records = Records(
        expert=found,
        members=ledger.members(),
        versions=ledger.versions(expert, -1, ledger.head(expert)),
        rounds=rounds,
        submissions=[s for r in rounds for s in ledger.submissions(expert, r.run, r.round)],
        transfers=ledger.transfers(expert),
        refusals=sorted([*ledger.refusals(expert), *ledger.refusals("")], key=lambda refusal: refusal.at_ms),
        quality=[q for q in ledger.quality(expert) if math.isfinite(q.value)],
    )
    return build_report(records, dense, seconds)


def build_report(records: Records, dense: DenseArm | None = None, seconds: float | None = None) -> Report:
    """The report of these records."""
    edges = {m.public.keyid: m.name for m in records.members if m.role == "edge"}
    ours = [t for t in records.transfers if t.keyid in edges]
    metric = _metric(records.quality, dense)
    quality = [q for q in records.quality if q.metric == metric]
    return Report(
        expert=records.expert.name,
        parameters=records.expert.layout.size,
        metric=metric,
        base=_score(_of_arm(quality, "base")),
        versions=tuple(_version_rows(records, ours, _of_arm(quality, "synced"))),
        clients=tuple(_client_rows(edges, ours, quality)),
        refusals=tuple(records.refusals),
        up=_sum(t for t in ours if t.direction == "up"),
        down=_sum(t for t in ours if t.direction == "down"),
        operator_wire_bytes=_sum(t for t in records.transfers if t.keyid not in edges).wire_bytes,
        rounds=sum(r.version is not None and r.version > r.base_version for r in records.rounds),
        seconds=_wall(ours) if seconds is None else seconds,
        dense=dense,
    )


def add(parts: Iterable[Traffic]) -> Traffic:
    """The sum."""
    parts = list(parts)
    return Traffic(*(sum(getattr(part, field.name) for part in parts) for field in fields(Traffic)))


def _sum(transfers: Iterable[Transfer]) -> Traffic:
    return add(
        Traffic(t.dense_fp32_bytes, t.payload_bytes, t.wire_received_bytes, t.wire_sent_bytes, t.seconds) for t in transfers
    )


def _metric(quality: Sequence[Quality], dense: DenseArm | None) -> str:
    """The metric that was reported first, or the dense arm's where the expert has none yet."""
    names = [q.metric for q in quality]
    if dense is not None and names and dense.metric not in names:
        raise InputError(f"the dense run measured {dense.metric[:40]!a}, this expert {names[0][:40]!a}: they cannot be compared")
    return dense.metric if dense is not None else names[0] if names else "accuracy"


def _of_arm(quality: Sequence[Quality], arm: Arm) -> list[Quality]:
    return [q for q in quality if q.arm == arm]


def _score(rows: Sequence[Quality]) -> Score | None:
    """Over the newest row of each client; over the newest mean where no client reported for itself."""
    newest = list({q.client: q for q in rows if q.client}.values()) or list(rows[-1:])
    if not newest:
        return None
    values, weights = [q.value for q in newest], [q.num_examples for q in newest]
    if not sum(weights):
        weights = [1] * len(newest)
    mean = math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
    return Score(mean, min(values), max(values), len(newest))


def _version_rows(records: Records, transfers: Sequence[Transfer], synced: Sequence[Quality]) -> list[VersionRow]:
    published = {v.version: v for v in records.versions}
    refused = [_refused_for(refusal, records.rounds) for refusal in records.refusals]
    rows, cumulative = [], 0
    for number in sorted({*published, *(t.version for t in transfers)}):
        here = [t for t in transfers if t.version == number]
        cumulative += _sum(here).wire_bytes
        row = VersionRow(
            version=number,
            published=number in published,
            score=_score([q for q in synced if q.version == number]),
            up=_sum(t for t in here if t.direction == "up"),
            down=_sum(t for t in here if t.direction == "down"),
            cumulative_wire_bytes=cumulative,
            participants=sum(s.merged_in == number for s in records.submissions),
            refused=refused.count(number),
            merge_seconds=published[number].merge_seconds if number in published else 0.0,
        )
        rows.append(row)
    return rows


def _refused_for(refusal: Refusal, rounds: Sequence[Round]) -> int | None:
    """The version that was in the making: that of the newest round opened before the refusal."""
    before = [r for r in rounds if r.opened_at_ms <= refusal.at_ms]
    return before[-1].base_version + 1 if before else None


def _client_rows(edges: dict[str, str], transfers: Sequence[Transfer], quality: Sequence[Quality]) -> list[ClientRow]:
    present = {t.keyid for t in transfers} | {q.client for q in quality}
    rows = []
    for keyid, name in sorted(edges.items(), key=lambda item: item[1]):
        if keyid not in present:
            continue
        here, own = [t for t in transfers if t.keyid == keyid], [q for q in quality if q.client == keyid]
        synced = sorted(_of_arm(own, "synced"), key=lambda q: q.version)
        row = ClientRow(
            name=name,
            keyid=keyid,
            up=_sum(t for t in here if t.direction == "up"),
            down=_sum(t for t in here if t.direction == "down"),
            base=next((q.value for q in reversed(_of_arm(own, "base"))), None),
            first=synced[0].value if synced else None,
            last=synced[-1].value if synced else None,
        )
        rows.append(row)
    return rows


def _wall(transfers: Sequence[Transfer]) -> float:
    """Seconds from the start of the first transfer to the end of the last one."""
    if not transfers:
        return 0.0
    return max(t.at_ms for t in transfers) / 1e3 - min(t.at_ms / 1e3 - t.seconds for t in transfers)


# Transfer time


@dataclass(frozen=True, slots=True)
class LinkTime:
    """Seconds that an average client's bytes of the whole log take on a link, without latency."""

    link: Link
    dense_fp32: float
    dense_bf16: float
    wire: float


def link_times(report: Report) -> list[LinkTime]:
    """One row a named link, for an average client."""
    return times_of(report.up, report.down, max(1, len(report.clients)))


def times_of(up: Traffic, down: Traffic, clients: int) -> list[LinkTime]:
    """One row a named link. Wire bytes take the way they went: to the aggregator at the up rate, from it at the down rate."""
    both = add((up, down))

    def seconds(link: Link, to_aggregator: float, from_aggregator: float) -> float:
        return 8 * (to_aggregator / link.up + from_aggregator / link.down) / clients

    return [
        LinkTime(
            link=link,
            dense_fp32=seconds(link, up.dense_fp32_bytes, down.dense_fp32_bytes),
            dense_bf16=seconds(link, up.dense_bf16_bytes, down.dense_bf16_bytes),
            wire=seconds(link, both.wire_received_bytes, both.wire_sent_bytes),
        )
        for link in LINKS
    ]


def measured_rate(report: Report) -> float | None:
    """Wire bit/s of the calls as they were, waiting and latency included; None if none was counted."""
    traffic = report.traffic
    return 8 * traffic.wire_bytes / traffic.seconds if traffic.seconds > 0 and report.wire_counted else None


def row_savings(report: Report, row: VersionRow, dense_bytes: int) -> float | None:
    """Dense / wire of one version, None where the report or the row has no quality to put beside it."""
    wire = row.traffic.wire_bytes
    return dense_bytes / wire if wire and row.score is not None and not report.silence else None
