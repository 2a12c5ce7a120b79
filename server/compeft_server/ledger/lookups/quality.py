"""Reported measurements of experts: the newest, and those of each version. A mean weighs each client by its examples."""

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa

from compeft_server.domain.records import Arm
from compeft_server.domain.traffic import Score
from compeft_server.ledger.lookups.reader import LedgerReader
from compeft_server.ledger.schema import quality, versions

MAX_CLIENT_SCORES = 1000
LARGEST = 1e300
"""Values beyond are not measurements."""


@dataclass(frozen=True, slots=True)
class NewestVersion:
    """The newest version at which an arm was measured, and what it measured."""

    version: int
    score: Score


@dataclass(frozen=True, slots=True)
class ExpertQuality:
    """An expert's newest quality by its own metric: the base model alone, what was measured uncompressed (a dense peer, or else each
    client's own update), and the composed expert.
    """

    metric: str
    base: NewestVersion | None
    dense: NewestVersion | None
    synced: NewestVersion | None


class Measurements(LedgerReader):
    """The quality of experts by their own metrics."""

    def metrics(self) -> dict[str, str]:
        """The metric that was reported first for each expert."""
        first = sa.select(sa.func.min(quality.c.id)).group_by(quality.c.expert)
        query = sa.select(quality.c.expert, quality.c.metric).where(quality.c.id.in_(first))
        return {r.expert: r.metric for r in self._select(query)}

    def newest_quality(self, expert: str, metric: str) -> ExpertQuality:
        """An expert's quality: the newest measurement of each arm."""
        q = quality.c
        where = (q.expert == expert, q.metric == metric)
        heads = sa.select(q.arm, sa.func.max(q.version).label("version")).where(*where).group_by(q.arm)
        newest = {r.arm: r.version for r in self._select(heads)}
        found: dict[str, NewestVersion] = {}
        for arm in ("base", "dense", "own", "synced"):
            if arm in newest and (score := self.scores(expert, metric, arm, [newest[arm]]).get(newest[arm])):
                found[arm] = NewestVersion(newest[arm], score)
        return ExpertQuality(metric, found.get("base"), found.get("dense") or found.get("own"), found.get("synced"))

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
        return {r.version: Score(r.mean, r.low, r.high, r.clients, r.reporter, own=arm == "own") for r in rows}

    def client_scores(self) -> dict[tuple[str, str, str], tuple[int, float]]:
        """(keyid, expert, metric) -> (version, value): what each client measured last of the composed expert."""
        q = quality.c
        newest = sa.select(sa.func.max(q.id)).where(q.arm == "synced", q.client != "").group_by(q.client, q.expert, q.metric)
        query = sa.select(q.client, q.expert, q.metric, q.version, q.value).where(q.id.in_(newest)).limit(MAX_CLIENT_SCORES)
        return {(r.client, r.expert, r.metric): (r.version, r.value) for r in self._select(query)}

    def measured_over_time(self, expert: str, metric: str, first_ms: int, length_ms: int) -> list[tuple[int, float]]:
        """(publication in ms, mean) of the newest measured version in each stretch of `length_ms` from `first_ms`, without version 0."""
        v, q = versions.c, quality.c
        known = v.version.in_(sa.select(q.version).where(q.expert == expert, q.metric == metric, q.arm == "synced").distinct())
        newest = sa.select(sa.func.max(v.version).label("version"), sa.func.max(v.created_at_ms).label("at_ms"))
        where = (v.expert == expert, v.version > 0, v.created_at_ms >= first_ms, known)
        rows = self._select(newest.where(*where).group_by((v.created_at_ms - first_ms) // length_ms))
        scores = self.scores(expert, metric, "synced", [r.version for r in rows])
        return sorted((r.at_ms, scores[r.version].mean) for r in rows if r.version in scores)
