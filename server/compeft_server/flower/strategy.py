"""CompressedStrategy: wraps a Flower strategy so that its rounds run through an aggregator, and its messages carry no weights.

The inner strategy still chooses nodes, configuration and metrics. Outgoing: the arrays of each message become a task record, and
the client's mod fetches them from the aggregator. Incoming: replies carry receipts and metrics; the aggregator merges the compressed
updates and publishes the next version, which also comes back here, for `evaluate_fn` and `Result.arrays`. What a killed conductor
leaves behind is one open round, which the next one abandons; a new run goes on from the expert's newest version.
"""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from compeft_core import Layout, Vector, flatten, layout_of, seeded_state, state_digest, unflatten
from compeft_core.budget import within
from compeft_core.centred_heads import check_heads
from compeft_core.errors import InputError, LayoutMismatchError
from compeft_core.frozen_tensors import active_places, resting_in_round, share_of_active
from compeft_core.statistics import dense_names
from compeft_proto import tracing
from compeft_proto.base_model import base_model_to_proto
from compeft_proto.convert import layout_to_proto
from compeft_proto.errors import ConflictError
from compeft_proto.round_task import AUTO, DTYPES, ORDER, RECORD, TRAINED_FROM, UNCOMPRESSED, RoundTask, as_type, travels
from compeft_proto.state_steps import pack_snapshot
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.domain.records import Arm
from compeft_server.flower.conductor import ClientMetric, Conductor, ConductorConfig, conductor_config
from compeft_server.flower.equivalents import followed_class, merging_of
from compeft_server.flower.error_log import log_errors_as_lines
from compeft_server.flower.plan import Plan
from compeft_server.flower.quorum_grid import QuorumGrid
from compeft_server.flower.relay_grid import RelayGrid
from compeft_server.flower.run_health import RunHealth, weighted_mean
from compeft_server.flower.version_follower import Follower
from compeft_server.flower.watching import metrics_of

__all__ = ["CompressedStrategy", "Plan"]


class CompressedStrategy(Strategy):
    """A Flower strategy whose arrays travel compressed and signed.

    inner: a FedAvg, FedProx or FedOpt, or any that `equivalents` knows; the merge itself happens at the aggregator. station: who conducts,
    from `conductor_config`; by default the site folder that the environment variable COMPEFT_SITE names.
    """

    def __init__(self, inner: FedAvg, plan: Plan, station: ConductorConfig | None = None) -> None:
        log_errors_as_lines()
        tracing.start_tracing("compeft-conductor", os.environ)
        self.inner, self.plan = inner, plan
        self._merging = replace(
            merging_of(inner, plan.merge_method, plan.merge_parameters, plan.optimizer),
            coefficient=plan.coefficient,
            compression=plan.downlink,
            codec="context" if plan.codec == AUTO else plan.codec,
        )
        self._watches = type(inner).aggregate_train is not FedAvg.aggregate_train and followed_class(inner) is FedAvg
        """Whether the inner strategy has an `aggregate_train` of its own, which only watches FedAvg's."""
        self._layout: Layout | None = None
        self._most_bytes = 0
        self._conductor = Conductor(station or conductor_config({}))
        self._follower: Follower | None = None
        self._dtypes: dict[str, str] = {}
        """The type of each of the app's arrays by name, in the app's order."""
        self._run = ""
        self._deadline_s = 3600.0
        self._version = 0
        self._health = RunHealth(plan.metric, plan.stop_below)
        self._privacy = plan.privacy
        """The terms of the newest round, with the clip in force."""
        self._traceparent = ""
        """Of the newest round's span; empty without traces."""
        self._sent: list[Message] = []
        """The training messages of the newest round."""

    def start(
        self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 3, timeout: float = 3600, *args: Any, **kwargs: Any
    ) -> Result:
        """As `Strategy.start`; the run's id and timeout also become those of the aggregator's rounds.

        Errors: UnreachableError, before any client is asked, if no aggregator answers.
        """
        if not self.plan.fetch and (kwargs.get("evaluate_fn") or len(args) > 2):
            raise InputError("evaluate_fn needs the merged arrays here, and the plan has fetch=False")
        self._layout_of(initial_arrays)  # refuses now what would be refused once the nodes are there
        self._conductor.check_reachable()
        if self.plan.draw:
            initial_arrays = self.seeded_arrays(initial_arrays)
        self._run = str(grid.run.run_id)
        self._deadline_s = min(timeout, self.plan.deadline_s or timeout)
        if self.plan.relay:
            grid = RelayGrid(grid, self._conductor)
        if self.plan.min_updates is not None or self.plan.deadline_s is not None:
            grid = QuorumGrid(grid, self.plan.min_updates, self._deadline_s)
        args, kwargs = self._with_watched_evaluation(args, kwargs)
        self._health = RunHealth(self.plan.metric, self.plan.stop_below)
        try:
            return super().start(grid, initial_arrays, num_rounds, timeout, *args, **kwargs)
        finally:
            for line in self._health.summary():
                log(WARNING, "%s", line)
            tracing.flush()

    def seeded_arrays(self, arrays: ArrayRecord) -> ArrayRecord:
        """Arrays of these names and shapes as the plan's seed and bounds give them: begin with them, and no initial byte travels.

        Errors: InputError if the plan has no seed, or was made for a model without one of the arrays.
        """
        if self.plan.seed is None:
            raise InputError("the plan has no seed: give it one, and the bounds within which each array begins")
        unread = next((name for name in arrays if self.plan.draw and name not in (self.plan.bounds or {})), None)
        if unread is not None:
            raise InputError(
                f"array {unread!r} is not one of the model that the plan was made for, so its first values are unknown: give "
                "Plan.for_model the arrays that you start with, or leave seed out"
            )
        layout = self._layout_of(arrays)
        return self._record(layout, seeded_state(layout, self.plan.seed, _bounds(layout, self.plan)))

    def summary(self) -> None:
        """Log what is wrapped and how it is compressed."""
        log(
            INFO,
            "\t├──> CompressedStrategy: up %s, down %s, LoRA averaging %s, merge %s, %s",
            self.plan.uplink,
            self.plan.downlink,
            self.plan.averaging,
            self._merging.method,
            self._merging.optimizer,
        )
        self.inner.summary()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Open a round at the aggregator; the inner strategy's messages, with a task instead of arrays. A trace begins here."""
        with tracing.span("round", expert=self.plan.expert, run=self._run, round=server_round) as self._traceparent:
            return self._opened(server_round, arrays, config, grid)

    def _opened(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        layout = self._layout = self._layout_of(arrays)
        if self._follower is None:
            self._follower = Follower(self._conductor, self.plan.expert, layout)
        resting = resting_in_round(self.plan.averaging, server_round)
        self._most_bytes = self._share(layout, resting, len(messages))
        if server_round == 1:
            self._publish(layout, arrays, self._follower)
        plan = self.plan
        opened = self._conductor.open_round(
            plan.expert,
            self._run,
            server_round,
            self._deadline_s,
            plan.max_staleness,
            privacy=plan.privacy,
            asked=len(messages),
        )
        if opened.layout_digest != layout.digest:
            raise LayoutMismatchError(
                f"{plan.expert} has layout {opened.layout_digest.hex()[:16]}, this run's arrays {layout.digest.hex()[:16]}: "
                "another rank or another set of arrays is another expert, so choose a new name"
            )
        self._version = opened.base_version
        self._privacy = plan.privacy and replace(plan.privacy, clip=opened.clip)
        self._sent = [self._with_task(message, server_round, opened.round_nonce, resting) for message in messages]
        return self._sent

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Close the round at the aggregator; the arrays of the version it led to, if the plan fetches them."""
        with tracing.span("close round", self._traceparent, round=server_round):
            return self._closed(server_round, list(replies))

    def _closed(self, server_round: int, replies: list[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self._health.note_failures(server_round, _nodes(self._sent), replies)
        self._health.check_losses(server_round, self._version, replies)
        self._health.check_weights(server_round, self.inner.weighted_by_key, replies)
        self._score("clients", replies)
        self._report(server_round, replies)
        plan, settings = self.plan, replace(self._merging, max_payload_bytes=self._most_bytes)
        if self._layout is not None:
            downlink = share_of_active(self._layout, plan.downlink, resting_in_round(plan.averaging, server_round))
            settings = replace(settings, compression=downlink)
        closed = self._conductor.close_round(plan.expert, self._run, server_round, settings)
        if plan.max_staleness and len(replies) < len(self._sent):
            log(WARNING, "round %s: %s clients are late, their updates may join a later round", server_round, len(self._sent))
        else:
            self._health.require_trained(server_round, len(self._sent), closed.accepted)
        self._version = closed.version
        merged = self._fetched(server_round)
        return merged, metrics_of(self.inner, server_round, replies, merged if self._watches else None)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """The inner strategy's messages, with a task instead of arrays."""
        messages = self.inner.configure_evaluate(server_round, arrays, config, grid)
        return [self._with_task(message, server_round, b"", ()) for message in messages]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The inner strategy's, with every client's metric reported to the aggregator."""
        replies = list(replies)
        self._health.note_failures(server_round, {}, replies)
        with tracing.span("report round", self._traceparent, round=server_round):
            self._report(server_round, replies)
        self._score("evaluation", replies)
        return self.inner.aggregate_evaluate(server_round, replies)

    def _score(self, source: str, replies: Sequence[Message]) -> None:
        """Hold the mean of the clients' task metric at the version that they measured against the best so far."""
        mean = weighted_mean(replies, self.plan.metric, self.inner.weighted_by_key)
        if mean is not None:
            self._health.score(source, self._version, mean)

    def _with_watched_evaluation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`start`'s arguments with an `evaluate_fn` whose results are watched. It is the third of `args`, or a keyword."""
        evaluate = kwargs.get("evaluate_fn") or next(iter(args[2:]), None)
        if evaluate is None:
            return args, kwargs

        def watched(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            found: MetricRecord | None = evaluate(server_round, arrays)
            value = found.get(self.plan.metric) if found else None
            if isinstance(value, int | float):
                self._health.score("evaluate_fn", self._version, float(value))
            return found

        return args[:2], {**kwargs, "evaluate_fn": watched}

    def _layout_of(self, arrays: ArrayRecord) -> Layout:
        """The layout of the app's arrays. Errors: InputError if one holds neither floating-point numbers nor counts."""
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        usual = dense_names(shapes, self.plan.dense_if_sent)
        for name, array in arrays.items():
            if not travels(array.dtype, counts=name in usual):
                raise InputError(
                    f"array {name!r} is {array.dtype}: only floating-point arrays travel, and counts in scalars or short vectors; "
                    "leave it out of the ArrayRecord"
                )
        self._dtypes = {name: array.dtype for name, array in arrays.items()}
        whole = self.plan.uplink.density == self.plan.downlink.density == 1
        layout = layout_of(shapes, shapes if whole else {*self.plan.dense, *usual})
        check_heads(layout, self.plan.centred_heads)
        return layout

    def _record(self, layout: Layout, vector: Vector) -> ArrayRecord:
        """A state as the app's arrays: in their order, in their types."""
        arrays = unflatten(layout, vector)
        return ArrayRecord({name: Array(as_type(arrays[name], dtype)) for name, dtype in self._dtypes.items()})

    def _fetched(self, server_round: int) -> ArrayRecord | None:
        """The newest version's arrays, in the order in which the app named them."""
        if not self.plan.fetch or self._follower is None or self._layout is None:
            return None
        return self._record(self._layout, self._follower.state(self._version, self._run, server_round))

    def _publish(self, layout: Layout, arrays: ArrayRecord, follower: Follower) -> None:
        """Create the expert from the initial arrays, unless it is there already: then this run goes on from its newest version."""
        state = flatten(layout, {name: array.numpy() for name, array in arrays.items()})
        genesis = pb.Genesis(
            expert=self.plan.expert,
            base_model_digest=self.plan.origin.base_model_digest,
            base_model=base_model_to_proto(self.plan.origin),
            adapter_config_digest=self.plan.origin.adapter_config_digest,
            adapter_config=self.plan.origin.adapter_config,
            layout=layout_to_proto(layout),
            state_digest=state_digest(layout, state),
        )
        seeded, payload = _seeded(layout, self.plan, genesis.state_digest), b""
        if seeded is not None:
            genesis.seeded.CopyFrom(seeded)
        else:
            genesis.snapshot.coding, payload = pack_snapshot(state)
        try:
            self._conductor.publish(genesis, payload)
            follower.begin(genesis, state)
        except ConflictError:
            log(INFO, "expert %s is there already: this run continues it", self.plan.expert)

    def _share(self, layout: Layout, resting: tuple[str, ...], clients: int) -> int:
        """Most payload bytes of one update of this round, up or down; 0: no limit. Errors: InputError if that is too little for any,
        or nothing would be active.
        """
        active = int(np.count_nonzero(active_places(layout, resting)[: layout.ternary_size]))
        if self.plan.budget_bytes is None or not clients:
            return 0
        share = self.plan.budget_bytes // (2 * clients)
        foretold = within(self.plan.uplink, active, layout.dense_size, share).density
        log(INFO, "budget of %s bytes a round: %s an update, a density of %.4g or more", self.plan.budget_bytes, share, foretold)
        return share

    def _with_task(self, message: Message, server_round: int, nonce: bytes, resting: tuple[str, ...]) -> Message:
        plan = self.plan
        how = plan.uplink, resting, plan.codec, self._most_bytes, self.inner.weighted_by_key, tuple(plan.centred_heads)
        every = plan.measure_uncompressed_every
        whole = bool(every) and server_round % every == 0
        task = RoundTask(
            plan.expert, self._run, server_round, nonce, self._version, *how, measure_uncompressed=whole, privacy=self._privacy
        )
        content = RecordDict({k: v for k, v in message.content.items() if not isinstance(v, ArrayRecord)})
        content[RECORD] = ConfigRecord(
            {
                **task.to_values(),
                "arrays-key": self.inner.arrayrecord_key,
                ORDER: self._order(),
                DTYPES: list(self._dtypes.values()),
                tracing.TRACEPARENT: self._traceparent or tracing.current(),
            }
        )
        meta = message.metadata
        return Message(content, meta.dst_node_id, meta.message_type, ttl=meta.ttl, group_id=meta.group_id)

    def _order(self) -> list[int]:
        """Where each of the app's arrays, in its order, stands in the layout."""
        places = {t.name: place for place, t in enumerate(self._layout.tensors)} if self._layout else {}
        return [places[name] for name in self._dtypes]

    def _report(self, server_round: int, replies: Iterable[Message]) -> None:
        """Put the metrics of each reply beside the bytes: of the version that the client measured, and of the frozen base."""
        names: tuple[tuple[Arm, str], ...] = (("synced", self.plan.metric), ("base", f"base-{self.plan.metric}"))
        for reply in replies:
            if reply.has_error() or RECORD not in reply.content.config_records:
                continue
            receipt = reply.content.config_records[RECORD]
            client, version = str(receipt["keyid"]), receipt["version"]
            for metrics in reply.content.metric_records.values():
                count = metrics.get("test-examples", metrics.get(self.inner.weighted_by_key, 0))
                for arm, name in names:
                    self._measure(server_round, client, version, arm, metrics.get(name), count)
                own = receipt.get(f"{UNCOMPRESSED}{self.plan.metric}")
                self._measure(server_round, client, receipt.get(TRAINED_FROM), "own", own, count)

    def _measure(self, server_round: int, client: str, version: object, arm: Arm, value: object, count: object) -> None:
        """Report one metric of one client, if it is a number at a version."""
        if not isinstance(value, int | float) or not isinstance(count, int | float) or not isinstance(version, int):
            return
        if math.isfinite(value) and math.isfinite(count) and count >= 0:
            measured = ClientMetric(self._run, server_round, version, arm, client, self.plan.metric, float(value), float(count))
            self._conductor.report(self.plan.expert, measured)


def _nodes(messages: Iterable[Message]) -> dict[str, int]:
    """The node that each message went to, by the message's id."""
    return {message.metadata.message_id: message.metadata.dst_node_id for message in messages}


def _seeded(layout: Layout, plan: Plan, digest: bytes) -> pb.SeededState | None:
    """The recipe of the initial arrays, if there is one that gives exactly them."""
    if plan.seed is None:
        return None
    bounds = _bounds(layout, plan)
    if state_digest(layout, seeded_state(layout, plan.seed, bounds)) != digest:
        log(WARNING, "the initial arrays are not those of seed %s and its bounds: they travel once, as a snapshot", plan.seed)
        return None
    return pb.SeededState(seed=plan.seed, bounds=bounds)


def _bounds(layout: Layout, plan: Plan) -> list[float]:
    return [float(np.float32((plan.bounds or {}).get(t.name, 0.0))) for t in layout.tensors]
