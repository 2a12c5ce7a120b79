"""From the ledger to a Report: reads one expert's facts and adds them up by version and by client.

Every fact is looked at once, whatever the number of versions. `read_report` is the only function here that reads the ledger.
"""

import bisect
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeVar

from compeft_core.errors import InputError
from compeft_proto.errors import UnknownExpertError
from compeft_server.domain.kpi import KpiSeries
from compeft_server.domain.pools import PoolUse
from compeft_server.domain.price import Label
from compeft_server.domain.records import Arm, Expert, Member, Quality, Refusal, Round, Transfer
from compeft_server.domain.traffic import Score, Traffic, add
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.lookups.pages import Listings, VersionFacts
from compeft_server.ledger.lookups.totals import Summaries
from compeft_server.reports.figures.gpu_use import NEWEST_UPDATES, measured_pools, training_use
from compeft_server.reports.figures.report import ClientRow, DenseArm, Report, RunRow, VersionRow

F = TypeVar("F")
NO_LABEL = Label()


@dataclass(frozen=True, slots=True)
class Records:
    """The ledger's rows of one expert, as they were read."""

    expert: Expert
    members: Sequence[Member]
    versions: Sequence[VersionFacts]
    rounds: Sequence[Round]
    transfers: Sequence[Transfer]
    refusals: Sequence[Refusal]
    quality: Sequence[Quality]
    since_ms: int | None = None
    kpis: Sequence[KpiSeries] = ()
    pools: Sequence[PoolUse] = ()
    updates: Sequence[tuple[bytes, str]] = ()
    labels: Mapping[str, Label] = field(default_factory=dict)


def read_report(
    ledger: Ledger, expert: str, dense: DenseArm | None = None, seconds: float | None = None, since_ms: int | None = None
) -> Report:
    """The report of one expert; `seconds` replaces the time from the first to the last transfer, `since_ms` leaves out what was before.

    Refusals that named no expert, because they came before their message could be trusted, are listed with those that did.
    Errors: UnknownExpertError; InputError if the dense arm measured another metric.
    """
    found = ledger.expert(expert)
    if found is None:
        raise UnknownExpertError(f"no expert {expert[:40]!a} here; there are: {', '.join(ledger.experts()) or 'none'}")
    first = since_ms or 0
    refusals = [*ledger.refusals(expert), *ledger.refusals("")]
    records = Records(
        expert=found,
        members=ledger.members(),
        versions=[v for v in Listings(ledger).version_facts(expert) if v.created_at_ms >= first],
        rounds=ledger.rounds(expert),
        transfers=[t for t in ledger.transfers(expert) if t.at_ms >= first],
        refusals=sorted((r for r in refusals if r.at_ms >= first), key=lambda refusal: refusal.at_ms),
        quality=[q for q in ledger.quality(expert) if math.isfinite(q.value)],
        since_ms=since_ms,
        kpis=[_since(series, first) for series in ledger.kpis.series(expert)],
        pools=ledger.pools.newest(),
        labels=ledger.labels.all(),
        updates=Summaries(ledger).newest_updates(expert, NEWEST_UPDATES),
    )
    return build_report(records, dense, seconds)


def build_report(records: Records, dense: DenseArm | None = None, seconds: float | None = None) -> Report:
    """The report of these records."""
    edges = {m.public.keyid: m.name for m in records.members if m.role == "edge"}
    keys = {m.public.keyid: m.public for m in records.members}
    ours = [t for t in records.transfers if t.keyid in edges]
    metric = _metric(records.quality, dense)
    quality = [q for q in records.quality if q.metric == metric]
    synced = _of_arm(quality, "synced")
    first = records.since_ms or 0
    closed = [
        r for r in records.rounds if r.version is not None and r.version > r.base_version and (r.closed_at_ms or 0) >= first
    ]
    return Report(
        expert=records.expert.name,
        parameters=records.expert.layout.size,
        metric=metric,
        base=_score(_of_arm(quality, "base")),
        versions=tuple(_version_rows(records, ours, synced)),
        clients=tuple(_client_rows(edges, ours, quality, records.labels)),
        refusals=tuple(records.refusals),
        up=_sum(t for t in ours if t.direction == "up"),
        down=_sum(t for t in ours if t.direction == "down"),
        operator_wire_bytes=_sum(t for t in records.transfers if t.keyid not in edges).wire_bytes,
        rounds=len(closed),
        seconds=_wall(ours) if seconds is None else seconds,
        dense=dense,
        runs=tuple(_run_rows(synced)),
        deviation=_deviation(synced),
        since_ms=records.since_ms,
        uncompressed=_newest(_of_arm(quality, "dense")) or _newest(_of_arm(quality, "own")),
        kind=records.expert.kind,
        kpis=tuple(records.kpis),
        pools=measured_pools(records.pools, {m.public.keyid: m.name for m in records.members}),
        training=training_use([(sealed, keys[keyid]) for sealed, keyid in records.updates if keyid in keys]),
        first_ms=min((t.at_ms for t in ours), default=None),
        last_ms=max((t.at_ms for t in ours), default=None),
    )


def _since(series: KpiSeries, first_ms: int) -> KpiSeries:
    return KpiSeries(series.kpi, tuple(v for v in series.values if v.at_ms >= first_ms))


def _sum(transfers: Iterable[Transfer]) -> Traffic:
    return add(Traffic(**{field.name: getattr(t, field.name) for field in fields(Traffic)}) for t in transfers)


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
    return Score(mean, min(values), max(values), len(newest), max(q.reporter for q in newest), own=newest[0].arm == "own")


def _version_rows(records: Records, transfers: Sequence[Transfer], synced: Sequence[Quality]) -> list[VersionRow]:
    published = {v.version: v for v in records.versions}
    refused = _refused(records.refusals, records.rounds)
    moved, measured = _grouped(transfers, lambda t: t.version), _grouped(synced, lambda q: q.version)
    rows, cumulative = [], 0
    for number in sorted({*published, *moved}):
        here, facts = moved[number], published.get(number)
        cumulative += _sum(here).wire_bytes
        row = VersionRow(
            version=number,
            published=facts is not None,
            score=_score(measured[number]),
            up=_sum(t for t in here if t.direction == "up"),
            down=_sum(t for t in here if t.direction == "down"),
            cumulative_wire_bytes=cumulative,
            participants=facts.participants if facts else 0,
            refused=refused[number],
            merge_seconds=facts.merge_seconds if facts else 0.0,
            created_at_ms=facts.created_at_ms if facts else None,
        )
        rows.append(row)
    return rows


def _grouped(facts: Iterable[F], by: Callable[[F], int]) -> defaultdict[int, list[F]]:
    groups: defaultdict[int, list[F]] = defaultdict(list)
    for fact in facts:
        groups[by(fact)].append(fact)
    return groups


def _refused(refusals: Sequence[Refusal], rounds: Sequence[Round]) -> Counter[int]:
    """How many for each version that was in the making: that of the newest round opened before the refusal."""
    opened = [r.opened_at_ms for r in rounds]
    places = (bisect.bisect_right(opened, refusal.at_ms) for refusal in refusals)
    return Counter(rounds[place - 1].base_version + 1 for place in places if place)


def _run_rows(synced: Sequence[Quality]) -> list[RunRow]:
    """Each run at the newest version that it measured, in the order of their first reports."""
    runs: dict[str, list[Quality]] = {}
    for q in synced:
        runs.setdefault(q.run, []).append(q)
    newest = {run: max(q.version for q in rows) for run, rows in runs.items()}
    scores = {run: _score([q for q in rows if q.version == newest[run]]) for run, rows in runs.items()}
    return [RunRow(run, newest[run], score) for run, score in scores.items() if score is not None]


def _newest(rows: Sequence[Quality]) -> Score | None:
    """At the newest version of these."""
    head = max((q.version for q in rows), default=-1)
    return _score([q for q in rows if q.version == head])


def _deviation(synced: Sequence[Quality]) -> float | None:
    """Standard deviation over the clients at the newest measured version, each client's newest row; None of fewer than two."""
    head = max((q.version for q in synced), default=-1)
    values = {q.client: q.value for q in synced if q.version == head and q.client}
    return statistics.stdev(values.values()) if len(values) > 1 else None


def _client_rows(
    edges: dict[str, str], transfers: Sequence[Transfer], quality: Sequence[Quality], labels: Mapping[str, Label]
) -> list[ClientRow]:
    moved: dict[str, list[Transfer]] = {}
    for t in transfers:
        moved.setdefault(t.keyid, []).append(t)
    measured: dict[str, list[Quality]] = {}
    for q in quality:
        measured.setdefault(q.client, []).append(q)
    present = moved.keys() | measured.keys()
    rows = []
    for keyid, name in sorted(edges.items(), key=lambda item: item[1]):
        if keyid not in present:
            continue
        here, own = moved.get(keyid, []), measured.get(keyid, [])
        synced = sorted(_of_arm(own, "synced"), key=lambda q: q.version)
        row = ClientRow(
            name=name,
            keyid=keyid,
            tenant=labels.get(name, NO_LABEL).tenant,
            link=labels.get(name, NO_LABEL).link,
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
