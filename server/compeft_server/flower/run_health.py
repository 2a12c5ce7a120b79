"""Decides when a run must stop, and records which clients failed, for the run's last lines.

A run stops when no client's update was accepted in a round, when clients report a NaN or infinite loss, or when the task metric stays
below a part of its best value for two measurements in a row. The versions of the expert stay as they are: the error names the last good
one, and what to change.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, MetricRecord

from compeft_core.errors import CompeftError

LOWER_IS_BETTER = re.compile(r"loss|error|perplexity|ppl|nll|mse|mae|(^|[-_.])(wer|cer|bpb|bpc)($|[-_.])", re.IGNORECASE)
"""Metrics by name of which a smaller value is better: their fall is not a reason to stop."""
PATIENCE = 2
"""Measurements in a row below the limit that stop a run: one bad round may recover."""
REMEDY = (
    "raise the density (Plan.uplink, Plan.downlink), lower the learning rate, or keep the tensors that broke dense (Plan.dense)"
)

RAISED = re.compile(r"<class '(?:[\w.]+\.)?(\w+)'>:<'(.*)'>|(\w+)\((?:'(.*)'|\"(.*)\"),?\)", re.DOTALL)
"""How Flower writes the exception of a ClientApp into a reply, and Python's repr of one: its class, its message."""
LONGEST_REASON = 500
OUT_OF_MEMORY = re.compile(r"out ?of ?memory|can't allocate memory|MemoryError", re.IGNORECASE)
MEMORY_REMEDY = (
    "out of memory at this site: give it a smaller batch and more gradient accumulation, gradient checkpointing, or a 4-bit base "
    "model"
)


def readable(reason: str) -> str:
    """A client's error as one line: class and first line of the message; for a lack of memory also the way out."""
    found = RAISED.fullmatch(reason.strip())
    if found is not None:
        name = found[1] or found[3]
        reason = f"{name}: {found[2] or found[4] or found[5] or 'without a message'}"
    lines = [line.strip() for line in reason.replace("\\n", "\n").splitlines() if line.strip()]
    line = lines[0][:LONGEST_REASON] if lines else "no reason given"
    return f"{line}; {MEMORY_REMEDY}" if OUT_OF_MEMORY.search(reason) else line


class RunStoppedError(CompeftError):
    """The run cannot go on usefully; the expert's versions are kept."""

    code = "run_stopped"


@dataclass(frozen=True, slots=True)
class Failure:
    """One client's failure in one round: the node's number at Flower, and the reason that it gave."""

    round: int
    node: int
    reason: str


@dataclass(frozen=True, slots=True)
class Scored:
    """A version of the expert and the value of the task metric there."""

    version: int
    value: float


@dataclass(slots=True)
class MetricWatch:
    """Compares a task metric (higher is better) with its best value so far; one watch for each source of values."""

    metric: str
    stop_below: float | None
    best: Scored | None = None
    below: int = 0

    def add(self, scored: Scored) -> None:
        """Take the next value. Errors: RunStoppedError for NaN or infinity, or the second value in a row below `stop_below` * best."""
        last = f"version {self.best.version} ({self.best.value:.4g}) is the last good one" if self.best else "no version was good"
        if not math.isfinite(scored.value):
            raise RunStoppedError(f"{self.metric} of version {scored.version} is {scored.value}: {last}; {REMEDY}")
        if self.stop_below is None or LOWER_IS_BETTER.search(self.metric):
            return
        if self.best is not None and scored.value < self.stop_below * self.best.value:
            self.below += 1
            if self.below >= PATIENCE:
                raise RunStoppedError(
                    f"{self.metric} fell to {scored.value:.4g} at version {scored.version}, below {self.stop_below:g} of its best: "
                    f"{last}; {REMEDY}; or set Plan.stop_below=None"
                )
            return
        self.below = 0
        if self.best is None or scored.value > self.best.value:
            self.best = scored


@dataclass(slots=True)
class RunHealth:
    """What one run has seen go wrong. metric, stop_below: see `Plan`."""

    metric: str
    stop_below: float | None
    failures: list[Failure] = field(default_factory=list)
    watches: dict[str, MetricWatch] = field(default_factory=dict)
    without_rows: dict[int, list[int]] = field(default_factory=dict)
    """Rounds in which a node reported the weight 0, by the node's number."""

    def note_failures(self, server_round: int, nodes: Mapping[str, int], replies: Iterable[Message]) -> None:
        """Record the replies that are errors. nodes: the node that each message went to, by the message's id."""
        for reply in replies:
            if reply.has_error():
                node = nodes.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
                self.failures.append(Failure(server_round, node, readable(str(reply.error.reason))))

    def require_trained(self, server_round: int, asked: int, accepted: int) -> None:
        """Errors: RunStoppedError, with the clients' first error, if clients were asked to train and no update was accepted."""
        if not asked or accepted:
            return
        now = [f for f in self.failures if f.round == server_round]
        if now:
            why = f"{len(now)} of {asked} clients failed, first node {now[0].node}: {now[0].reason}"
        else:
            why = f"none of {asked} clients answered before the deadline"
        raise RunStoppedError(f"round {server_round}: no client's update was accepted; {why}")

    def check_weights(self, server_round: int, weighted_by: str, replies: Sequence[Message]) -> None:
        """Record the clients whose weight is 0. Errors: RunStoppedError if it is that of all that answered: they have no mean."""
        for reply in replies:
            weights = [] if reply.has_error() else [m.get(weighted_by) for m in reply.content.metric_records.values()]
            if weights == [0]:
                self.without_rows.setdefault(reply.metadata.src_node_id, []).append(server_round)
        reported = [metrics for reply in replies if not reply.has_error() for metrics in reply.content.metric_records.values()]
        if reported and not any(metrics.get(weighted_by) for metrics in reported):
            raise RunStoppedError(
                f"round {server_round}: every client's {weighted_by} is 0: no weighted mean exists; nothing is merged"
            )

    def check_losses(self, server_round: int, version: int, replies: Sequence[Message]) -> None:
        """Errors: RunStoppedError if at least half of the clients that answered report a NaN or infinite loss or task metric."""
        reported = [metrics for reply in replies if not reply.has_error() for metrics in reply.content.metric_records.values()]
        bad = [name for metrics in reported if (name := self._first_bad(metrics))]
        if bad and 2 * len(bad) >= len(reported):
            raise RunStoppedError(
                f"round {server_round}: {bad[0]} of {len(bad)} of {len(reported)} clients is NaN or infinite; nothing of this round is "
                f"merged, version {version} stays; {self._last_good()}{REMEDY}"
            )

    def score(self, source: str, version: int, value: float) -> None:
        """Take a value of the task metric from `source`, such as 'evaluate_fn'. Errors: as `MetricWatch.add`."""
        self.watches.setdefault(source, MetricWatch(self.metric, self.stop_below)).add(Scored(version, value))

    def summary(self) -> list[str]:
        """One line for each client that failed (its node, its rounds, its first error) or was skipped because it has no rows."""
        by_node: dict[int, list[Failure]] = {}
        for failure in self.failures:
            by_node.setdefault(failure.node, []).append(failure)
        return [
            f"client at node {node} failed in rounds {', '.join(str(n) for n in sorted({f.round for f in found}))}: {found[0].reason}"
            for node, found in sorted(by_node.items())
        ] + [
            f"client at node {node} was skipped in rounds {', '.join(map(str, rounds))}: its weight is 0, it has no rows to train on"
            for node, rounds in sorted(self.without_rows.items())
        ]

    def _first_bad(self, metrics: MetricRecord) -> str:
        named = ((n, v) for n, v in metrics.items() if n == self.metric or "loss" in n.lower())
        return next((n for n, v in named if isinstance(v, float) and not math.isfinite(v)), "")

    def _last_good(self) -> str:
        best = max((w.best for w in self.watches.values() if w.best), key=lambda s: s.version, default=None)
        return f"version {best.version} had {self.metric} {best.value:.4g}; " if best else ""


def weighted_mean(replies: Iterable[Message], metric: str, weighted_by: str) -> float | None:
    """Mean of a metric over the replies that report it, by their weights; None if none does or the weights are all zero."""
    total, weights = 0.0, 0.0
    for reply in replies:
        for metrics in [] if reply.has_error() else reply.content.metric_records.values():
            value, weight = metrics.get(metric), metrics.get(weighted_by)
            if isinstance(value, int | float) and isinstance(weight, int | float):
                total, weights = total + value * weight, weights + weight
    return total / weights if weights else None
