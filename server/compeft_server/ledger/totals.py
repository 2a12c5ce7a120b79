"""Sums over the whole ledger, as SQL aggregates: what the live page and the operator's metrics show. Nothing is written here.

A ledger of ten thousand rounds answers each of these with few rows: sums are grouped where the rows lie, long lists are in listings.py.
Byte counts of experts and versions are those of edge clients; conductors and readers are left out, as in the report.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from compeft_server.domain.records import Arm
from compeft_server.domain.traffic import Score, Traffic, add
from compeft_server.ledger.database import read
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.schema import audit, experts, keys, quality, refusals, rounds, submissions, transfers, versions

CURVE_POINTS = 120
"""Most versions of which a long expert log's curve is made."""
MAX_CLIENT_SCORES = 1000
LARGEST = 1e300
"""Values beyond are not measurements."""

SUMS = tuple(
    sa.func.coalesce(sa.func.sum(transfers.c[name]), 0).label(name) for name in (field.name for field in fields(Traffic))
)
OF_EDGES = transfers.join(keys, sa.and_(keys.c.keyid == transfers.c.keyid, keys.c.role == "edge"))


NOTHING = Traffic()


@dataclass(frozen=True, slots=True)
class Moved:
    """What edge clients moved: uploads and syncs."""

    up: Traffic = NOTHING
    down: Traffic = NOTHING
    calls: int = 0

    @property
    def both(self) -> Traffic:
        """Both directions."""
        return add((self.up, self.down))


@dataclass(frozen=True, slots=True)
class ExpertSummary:
    """One expert and the ends of its log."""

    name: str
    layout: bytes
    created_at_ms: int
    head: int
    newest_at_ms: int
    kind: str


@dataclass(frozen=True, slots=True)
class NewestVersion:
    """The newest version at which an arm was measured, and what it measured."""

    version: int
    score: Score


@dataclass(frozen=True, slots=True)
class ExpertQuality:
    """An expert's newest quality by its own metric: the base model alone, the uncompressed peer, and the composed expert."""

    metric: str
    base: NewestVersion | None
    dense: NewestVersion | None
    synced: NewestVersion | None


@dataclass(frozen=True, slots=True)
class ClientSummary:
    """An enrolled key and what it did."""

    name: str
    keyid: str
    role: str
    enrolled_at_ms: int
    revoked_at_ms: int | None
    last_at_ms: int | None
    moved: Moved


class Summaries:
    """What a reader asks of one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._engine = ledger.engine

    # Experts

    def experts(self) -> list[ExpertSummary]:
        """All experts by name, with the ends of their logs."""
        v = versions.c
        query = (
            sa.select(experts.c.expert, experts.c.layout, experts.c.created_at_ms, experts.c.kind)
            .add_columns(sa.func.max(v.version).label("head"), sa.func.max(v.created_at_ms).label("newest"))
            .join(versions, v.expert == experts.c.expert)
            .group_by(experts.c.expert, experts.c.layout, experts.c.created_at_ms, experts.c.kind)
            .order_by(experts.c.expert)
        )
        return [ExpertSummary(r.expert, r.layout, r.created_at_ms, r.head, r.newest, r.kind) for r in self._select(query)]

    def moved(self, since_ms: int = 0) -> dict[str, Moved]:
        """What edge clients moved for each expert from a time on; the key "" is of calls that never named one."""
        return self._moved(transfers.c.expert, (transfers.c.at_ms >= since_ms,))

    def moved_by_version(self, expert: str, numbers: Collection[int]) -> dict[int, Moved]:
        """The same for some versions of one expert."""
        return self._moved(transfers.c.version, (transfers.c.expert == expert, transfers.c.version.in_(numbers)))

    def moved_between(self, expert: str, first: int, last: int, since_ms: int = 0) -> Moved:
        """What edge clients moved for the versions `first` to `last` of one expert."""
        c = transfers.c
        where = (c.expert == expert, c.version.between(first, last), c.at_ms >= since_ms)
        return self._moved(c.expert, where).get(expert, Moved())

    def span(self, names: Collection[str]) -> tuple[int, int] | None:
        """When the first and the last transfer of edge clients for these experts began, in ms; None if there was none."""
        c = transfers.c
        query = sa.select(sa.func.min(c.at_ms).label("first"), sa.func.max(c.at_ms).label("last"))
        row = self._select(query.select_from(OF_EDGES).where(c.expert.in_(names)))[0]
        return None if row.first is None else (row.first, row.last)

    def moved_over_time(self, names: Collection[str], first_ms: int, length_ms: int) -> dict[int, Moved]:
        """What edge clients moved for these experts from `first_ms` on, by the number of the stretch of `length_ms` in which it began."""
        c = transfers.c
        return self._moved((c.at_ms - first_ms) // length_ms, (c.expert.in_(names), c.at_ms >= first_ms))

    def measured_over_time(self, expert: str, metric: str, first_ms: int, length_ms: int) -> list[tuple[int, float]]:
        """(publication in ms, mean) of the newest measured version in each stretch of `length_ms` from `first_ms`, without version 0."""
        v, q = versions.c, quality.c
        known = sa.exists().where(q.expert == v.expert, q.version == v.version, q.metric == metric, q.arm == "synced")
        newest = sa.select(sa.func.max(v.version).label("version"), sa.func.max(v.created_at_ms).label("at_ms"))
        where = (v.expert == expert, v.version > 0, v.created_at_ms >= first_ms, known)
        rows = self._select(newest.where(*where).group_by((v.created_at_ms - first_ms) // length_ms))
        scores = self.scores(expert, metric, "synced", [r.version for r in rows])
        return sorted((r.at_ms, scores[r.version].mean) for r in rows if r.version in scores)

    def wire_curve(self, expert: str, head: int) -> list[tuple[int, int]]:
        """(version, wire bytes up to it) at evenly spaced versions and the newest one, at most CURVE_POINTS + 1 of them."""
        step = -(-(head + 1) // CURVE_POINTS)
        bucket = (head - transfers.c.version) // step
        wire = sa.func.sum(transfers.c.wire_received_bytes + transfers.c.wire_sent_bytes)
        where = (transfers.c.expert == expert, transfers.c.version <= head)
        query = sa.select(bucket.label("bucket"), wire.label("wire")).select_from(OF_EDGES).where(*where).group_by("bucket")
        points, sent = [], 0
        for row in sorted(self._select(query), key=lambda r: -r.bucket):
            sent += int(row.wire)
            points.append((head - row.bucket * step, sent))
        return points

    # Quality

    def metrics(self) -> dict[str, str]:
        """The metric that was reported first for each expert."""
        first = sa.select(sa.func.min(quality.c.id)).group_by(quality.c.expert)
        query = sa.select(quality.c.expert, quality.c.metric).where(quality.c.id.in_(first))
        return {r.expert: r.metric for r in self._select(query)}

    def standing(self, expert: str, metric: str) -> ExpertQuality:
        """An expert's quality: the newest measurement of each arm."""
        q = quality.c
        where = (q.expert == expert, q.metric == metric)
        heads = sa.select(q.arm, sa.func.max(q.version).label("version")).where(*where).group_by(q.arm)
        newest = {r.arm: r.version for r in self._select(heads)}
        found: dict[str, NewestVersion] = {}
        for arm in ("base", "dense", "synced"):
            if arm in newest and (score := self.scores(expert, metric, arm, [newest[arm]]).get(newest[arm])):
                found[arm] = NewestVersion(newest[arm], score)
        return ExpertQuality(metric, found.get("base"), found.get("dense"), found.get("synced"))

    def scores(self, expert: str, metric: str, arm: Arm, numbers: Collection[int] | None = None) -> dict[int, Score]:
        """The score of one arm at each of some versions, all by default: over the newest row of each client, or the newest mean where
        no client reported for itself. Versions without a measurement are left out.
        """
        q = quality.c
        where = [q.expert == expert, q.metric == metric, q.arm == arm, q.value.between(-LARGEST, LARGEST)]
        where += [] if numbers is None else [q.version.in_(numbers)]
        newest = sa.select(sa.func.max(q.id)).where(*where).group_by(q.version, q.client)
        mean = sa.func.sum(q.value * q.num_examples) / sa.func.nullif(sa.func.sum(q.num_examples), 0)
        query = sa.select(
            q.version,
            (q.client != "").label("own"),
            sa.func.coalesce(mean, sa.func.avg(q.value)).label("mean"),
            sa.func.min(q.value).label("low"),
            sa.func.max(q.value).label("high"),
            sa.func.count().label("clients"),
            sa.func.max(q.reporter).label("reporter"),
        ).where(q.id.in_(newest))
        rows = sorted(self._select(query.group_by(q.version, "own")), key=lambda r: bool(r.own))
        return {r.version: Score(r.mean, r.low, r.high, r.clients, r.reporter) for r in rows}

    def client_scores(self) -> dict[tuple[str, str, str], tuple[int, float]]:
        """(keyid, expert, metric) -> (version, value): what each client measured last of the composed expert."""
        q = quality.c
        newest = sa.select(sa.func.max(q.id)).where(q.arm == "synced", q.client != "").group_by(q.client, q.expert, q.metric)
        query = sa.select(q.client, q.expert, q.metric, q.version, q.value).where(q.id.in_(newest)).limit(MAX_CLIENT_SCORES)
        return {(r.client, r.expert, r.metric): (r.version, r.value) for r in self._select(query)}

    # Rows

    def transfer_rows(self, expert: str | None = None, since_ms: int = 0) -> Iterator[Mapping[str, Any]]:
        """Every transfer of an expert, or of all, in the order of recording, with the `client` (name) and `role` of its key, if known."""
        columns = [c for c in transfers.c if c.name != "id"]
        joined = transfers.outerjoin(keys, keys.c.keyid == transfers.c.keyid)
        where = [transfers.c.at_ms >= since_ms] + ([transfers.c.expert == expert] if expert is not None else [])
        query = sa.select(*columns, keys.c.name.label("client"), keys.c.role).select_from(joined).where(*where)
        for row in self._select(query.order_by(transfers.c.id)):
            yield dict(row._mapping)

    def merge_times(self, expert: str) -> dict[int, tuple[bytes, float]]:
        """By version: its sealed manifest, and the seconds spent merging it."""
        c = versions.c
        query = sa.select(c.version, c.envelope, c.merge_seconds).where(c.expert == expert)
        return {r.version: (r.envelope, r.merge_seconds) for r in self._select(query)}

    def newest_update(self, expert: str) -> tuple[bytes, str] | None:
        """The envelope of the update that was accepted last, and its keyid; None if absent."""
        c = submissions.c
        query = sa.select(c.envelope, c.keyid).where(c.expert == expert).order_by(c.accepted_at_ms.desc()).limit(1)
        rows = self._select(query)
        return (rows[0].envelope, rows[0].keyid) if rows else None

    # Counts

    def clients(self) -> list[ClientSummary]:
        """All enrolled keys, by name, with what each moved."""
        moved = self._moved(transfers.c.keyid, ())
        seen = sa.select(transfers.c.keyid, sa.func.max(transfers.c.at_ms).label("last")).group_by(transfers.c.keyid)
        last = {r.keyid: r.last for r in self._select(seen)}
        c = keys.c
        query = sa.select(c.name, c.keyid, c.role, c.enrolled_at_ms, c.revoked_at_ms).order_by(c.name)
        rows = self._select(query)
        return [ClientSummary(**r._mapping, last_at_ms=last.get(r.keyid), moved=moved.get(r.keyid, Moved())) for r in rows]

    def moved_by_member(self, keyid: str) -> dict[str, Moved]:
        """By expert: what one edge client moved."""
        return self._moved(transfers.c.expert, (transfers.c.keyid == keyid,))

    def newest_delivered(self, keyid: str) -> dict[str, int]:
        """By expert: the newest version that was delivered to a key."""
        c = transfers.c
        query = sa.select(c.expert, sa.func.max(c.version).label("version")).where(
            c.keyid == keyid, c.direction == "down", c.expert != ""
        )
        return {r.expert: r.version for r in self._select(query.group_by(c.expert))}

    def refused_by_code(self) -> dict[str, int]:
        """How many were refused, by code, the most frequent first."""
        c, count = refusals.c, sa.func.count().label("number")
        return {r.code: r.number for r in self._select(sa.select(c.code, count).group_by(c.code).order_by(count.desc(), c.code))}

    def actions(self) -> list[str]:
        """The actions in the audit log, sorted."""
        return sorted(r.action for r in self._select(sa.select(audit.c.action).distinct()))

    def round_counts(self) -> dict[str, tuple[int, int]]:
        """By expert: (rounds opened, rounds closed)."""
        c = rounds.c
        query = sa.select(c.expert, sa.func.count().label("opened"), sa.func.count(c.closed_at_ms).label("closed"))
        return {r.expert: (r.opened, r.closed) for r in self._select(query.group_by(c.expert))}

    def merged_in(self) -> dict[str, tuple[int, float]]:
        """By expert: (versions, seconds spent merging them)."""
        c = versions.c
        query = sa.select(c.expert, sa.func.count().label("number"), sa.func.sum(c.merge_seconds).label("spent")).group_by(
            c.expert
        )
        return {r.expert: (r.number, r.spent) for r in self._select(query)}

    def accepted(self) -> dict[str, int]:
        """By expert: updates accepted."""
        c = submissions.c
        query = sa.select(c.expert, sa.func.count().label("number")).group_by(c.expert)
        return {r.expert: r.number for r in self._select(query)}

    def marks(self) -> tuple[int, ...]:
        """Numbers that change whenever anything that is shown does: what the live page watches."""
        newest = [
            sa.func.coalesce(sa.select(sa.func.max(t.c.id)).scalar_subquery(), 0) for t in (transfers, quality, refusals, audit)
        ]
        return tuple(int(n) for n in self._select(sa.select(*newest))[0])

    def _select(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        return read(self._engine, query)

    def _moved(self, by: sa.ColumnElement[Any], where: Iterable[sa.ColumnElement[bool]]) -> dict[Any, Moved]:
        columns = (by.label("place"), transfers.c.direction, sa.func.count().label("calls"), *SUMS)
        query = sa.select(*columns).select_from(OF_EDGES).where(*where).group_by(by, transfers.c.direction)
        parts: dict[Any, dict[str, tuple[Traffic, int]]] = {}
        for r in self._select(query):
            parts.setdefault(r.place, {})[r.direction] = (_traffic(r), r.calls)
        none = (NOTHING, 0)
        pairs = {place: (found.get("up", none), found.get("down", none)) for place, found in parts.items()}
        return {place: Moved(up[0], down[0], up[1] + down[1]) for place, (up, down) in pairs.items()}


def _traffic(row: sa.Row[Any]) -> Traffic:
    return Traffic(
        dense_fp32_bytes=int(row.dense_fp32_bytes),
        payload_bytes=int(row.payload_bytes),
        wire_received_bytes=int(row.wire_received_bytes),
        wire_sent_bytes=int(row.wire_sent_bytes),
        seconds=float(row.seconds),
        relayed_bytes=int(row.relayed_bytes),
        flow_bytes=int(row.flow_bytes),
        flow_seconds=float(row.flow_seconds),
    )
