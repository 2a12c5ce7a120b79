"""The operator's metrics for Prometheus: sums of the ledger, read when they are asked for, beside what this process counts itself.

Base units, `_total` for what only grows. Labels are few: experts, directions, error codes, arms; never a client, a peer or a run.
At most MAX_EXPERTS experts are told apart, by name; the others are left out, and `compeft_experts` says how many there are.
"""

import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from compeft_server.domain.pools import PoolUse
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.lookups.moved import Moved
from compeft_server.ledger.lookups.privacy_account import read_account
from compeft_server.ledger.lookups.totals import Summaries

MAX_EXPERTS = 200
ALARMING = {"bad_signature": 0, "unknown_key": 0}
"""Counts that are there from the start: an alert must see the first refusal as a step from 0."""
Samples = dict[tuple[str, ...], float]


class Exposition(Protocol):
    """Whatever can say its metrics as text."""

    def text(self) -> bytes:
        """In Prometheus' text format."""


class Registry:
    """All metrics of one process; `calls` are those of its gRPC server, if it is one."""

    def __init__(self, data: Path, ledger: Ledger, calls: CollectorRegistry | None = None) -> None:
        self._calls = calls
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(LedgerCollector(ledger))
        self.registry.register(DiskCollector(data))

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry) + (b"" if self._calls is None else generate_latest(self._calls))


class LedgerCollector(Collector):
    """What the ledger adds up to."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._summaries = ledger, Summaries(ledger)

    def describe(self) -> list[Metric]:
        """Nothing: registering must not read the ledger."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families, from a handful of queries."""
        yield InfoMetricFamily(
            "compeft_build", "Version of ComPEFT", {"version": version("compeft"), "python": platform.python_version()}
        )
        experts = self._summaries.experts()
        shown = {e.name for e in experts[:MAX_EXPERTS]}
        yield _gauge("compeft_experts", "Experts published", (), {(): len(experts)})
        yield _gauge(
            "compeft_version", "Newest version of an expert", ("expert",), {(e.name,): e.head for e in experts if e.name in shown}
        )
        times: Samples = {(e.name,): e.newest_at_ms / 1000 for e in experts if e.name in shown}
        yield _gauge("compeft_version_timestamp_seconds", "When the newest version was published", ("expert",), times)
        yield from self._work(shown)
        yield from _traffic({name: moved for name, moved in self._summaries.moved().items() if name in shown})
        yield _counter(
            "compeft_refusals", "Submissions and syncs refused", ("code",), _by(ALARMING | self._summaries.refused_by_code())
        )
        yield from self._quality(shown)
        yield from self._kpis(shown)
        yield from self._pools()
        yield from self._privacy(shown)
        members: Samples = {}
        for client in self._summaries.clients():
            key = (client.role, "enrolled" if client.revoked_at_ms is None else "revoked")
            members[key] = members.get(key, 0) + 1
        yield _gauge("compeft_members", "Keys by role and state", ("role", "state"), members)

    def _work(self, shown: set[str]) -> Iterator[Metric]:
        rounds = {name: counts for name, counts in self._summaries.round_counts().items() if name in shown}
        opened, closed = ({n: c[i] for n, c in rounds.items()} for i in (0, 1))
        yield _counter("compeft_rounds_opened", "Rounds opened", ("expert",), _by(opened))
        yield _counter("compeft_rounds_closed", "Rounds closed", ("expert",), _by(closed))
        waiting = {name: opened[name] - closed[name] for name in rounds}
        yield _gauge("compeft_rounds_open", "Rounds open now", ("expert",), _by(waiting))
        merged = {name: done for name, done in self._summaries.merged_in().items() if name in shown}
        yield _counter("compeft_versions", "Versions published", ("expert",), _by({n: m[0] for n, m in merged.items()}))
        yield _counter("compeft_merge_seconds", "Time spent merging", ("expert",), _by({n: m[1] for n, m in merged.items()}))
        accepted = {name: number for name, number in self._summaries.accepted().items() if name in shown}
        yield _counter("compeft_updates_accepted", "Updates accepted", ("expert",), _by(accepted))

    def _pools(self) -> Iterator[Metric]:
        """Sums over all pools, without a label of a member."""
        pools = self._ledger.pools.newest()
        for name, words, value in POOL_SUMS:
            yield _gauge(f"compeft_pool_{name}", words, (), {(): sum(value(use) for use in pools)})

    def _privacy(self, shown: set[str]) -> Iterator[Metric]:
        found = [account for name in sorted(shown) if (account := read_account(self._ledger, name))]
        spent: Samples = {(a.expert,): a.epsilon for a in found}
        yield _gauge("compeft_privacy_epsilon", "Epsilon so far of the most exposed member", ("expert",), spent)
        left: Samples = {(a.expert,): a.rounds_left for a in found if a.rounds_left is not None}
        yield _gauge("compeft_privacy_rounds_left", "Private rounds that the bound leaves", ("expert",), left)

    def _kpis(self, shown: set[str]) -> Iterator[Metric]:
        found = [s for name in sorted(shown) for s in self._ledger.kpis.series(name) if s.values]
        newest: Samples = {(s.kpi.expert, s.kpi.name): s.values[-1].value for s in found}
        yield _gauge("compeft_kpi", "Newest value of a business metric", ("expert", "name"), newest)
        goals: Samples = {(s.kpi.expert, s.kpi.name): s.kpi.goal for s in found if s.kpi.goal is not None}
        yield _gauge("compeft_kpi_goal", "What is aimed at", ("expert", "name"), goals)
        before: Samples = {(s.kpi.expert, s.kpi.name): s.kpi.baseline for s in found if s.kpi.baseline is not None}
        yield _gauge("compeft_kpi_baseline", "The value before the expert was in use", ("expert", "name"), before)

    def _quality(self, shown: set[str]) -> Iterator[Metric]:
        values: Samples = {}
        for expert, metric in self._summaries.metrics().items():
            if expert not in shown:
                continue
            standing = self._summaries.newest_quality(expert, metric)
            whole = "own" if standing.dense is not None and standing.dense.score.own else "dense"
            arms = {"base": standing.base, whole: standing.dense, "synced": standing.synced}
            found = {arm: newest.score for arm, newest in arms.items() if newest is not None}
            values |= {(expert, metric, arm, "reported" if s.reporter else "measured"): s.mean for arm, s in found.items()}
        yield _gauge("compeft_quality", "Newest task metric, mean over clients", ("expert", "metric", "arm", "source"), values)


class DiskCollector(Collector):
    """The disk under the data directory, and uploads that are under way or were cut."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def describe(self) -> list[Metric]:
        """Nothing: registering must not touch the disk."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families."""
        disk = shutil.disk_usage(self._data)
        yield _gauge("compeft_disk_size_bytes", "Size of the disk under the data directory", (), {(): disk.total})
        yield _gauge("compeft_disk_free_bytes", "Free on that disk", (), {(): disk.free})
        sizes = [size for path in (self._data / "partial").glob("*") if (size := _size(path)) is not None]
        yield _gauge("compeft_open_uploads", "Chunks that have arrived in part", (), {(): len(sizes)})
        yield _gauge("compeft_open_upload_bytes", "What of them has arrived", (), {(): sum(sizes)})
        files = [size for path in self._data.glob("ledger.sqlite*") if (size := _size(path)) is not None]
        yield _gauge("compeft_ledger_size_bytes", "Size of the ledger's files", (), {(): sum(files)})


POOL_SUMS: tuple[tuple[str, str, Callable[[PoolUse], float]], ...] = (
    ("reporting", "Pools that have reported", lambda use: 1),
    ("resident_experts", "Experts in the memory of pools", lambda use: use.resident),
    ("resident_bytes", "Bytes of these", lambda use: use.resident_bytes),
    ("dense_bf16_bytes", "The same experts as bfloat16", lambda use: use.dense_bf16_bytes),
    ("switches", "Switches since the pools began", lambda use: use.switches),
    ("hits", "Of these, to an expert in memory", lambda use: use.hits),
    ("switch_seconds", "Time in switches", lambda use: use.switch_seconds),
    ("decode_seconds", "Time in reading and decoding", lambda use: use.decode_seconds),
    ("device_memory_bytes", "Most memory allocated on devices", lambda use: use.device_memory_bytes),
)
"""Over the newest report of each pool. Gauges: a pool that begins anew begins at 0."""
TRAFFIC: Mapping[str, tuple[str, Callable[[Moved], tuple[float, float]]]] = {
    "compeft_wire_received_bytes": (
        "Received by the aggregator on the wire",
        lambda m: (m.up.wire_received_bytes, m.down.wire_received_bytes),
    ),
    "compeft_wire_sent_bytes": ("Sent on the wire", lambda m: (m.up.wire_sent_bytes, m.down.wire_sent_bytes)),
    "compeft_relayed_bytes": ("Of these, carried on by others", lambda m: (m.up.relayed_bytes, m.down.relayed_bytes)),
    "compeft_payload_bytes": ("Encoded parameters moved", lambda m: (m.up.payload_bytes, m.down.payload_bytes)),
    "compeft_dense_fp32_bytes": ("What the same would be as fp32", lambda m: (m.up.dense_fp32_bytes, m.down.dense_fp32_bytes)),
    "compeft_transfer_seconds": ("Time in transfers, waiting included", lambda m: (m.up.seconds, m.down.seconds)),
    "compeft_flow_bytes": ("Bytes over which a rate was measured", lambda m: (m.up.flow_bytes, m.down.flow_bytes)),
    "compeft_flow_seconds": ("Time in which these flowed", lambda m: (m.up.flow_seconds, m.down.flow_seconds)),
}
"""Of edge clients, by direction: up are uploads, down are syncs; each has bytes both ways."""


def _traffic(moved: Mapping[str, Moved]) -> Iterator[Metric]:
    for name, (words, pair) in TRAFFIC.items():
        samples: Samples = {(expert, way): pair(m)[i] for expert, m in moved.items() for i, way in enumerate(("up", "down"))}
        yield _counter(name, words, ("expert", "direction"), samples)
    yield _counter("compeft_transfers", "Uploads and syncs", ("expert",), _by({name: m.calls for name, m in moved.items()}))


def _by(values: Mapping[str, float]) -> Samples:
    return {(name,): value for name, value in values.items()}


def _counter(name: str, words: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    family = CounterMetricFamily(name, words, labels=labels)
    for key, value in samples.items():
        family.add_metric(key, value)
    return family


def _gauge(name: str, words: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    family = GaugeMetricFamily(name, words, labels=labels)
    for key, value in samples.items():
        family.add_metric(key, value)
    return family


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
