"""Our arm: the real aggregator on a loopback port, real edge clients; the bytes are those that its ledger counted on the socket."""

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compeft_client.exchange.edge_client import EdgeClient, Synced, Trained
from compeft_client.identity.edge_config import Edge
from compeft_core import Compression, Layout, Vector, flatten, layout_of, state_digest, unflatten
from compeft_core.seeded_state import seeded_state
from compeft_core.server_optimizer import ServerOptimizer
from compeft_proto.clock import now_ms
from compeft_proto.convert import layout_to_proto
from compeft_proto.keys import new_key
from compeft_proto.round_task import Origin, RoundTask
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.admin import policy_admin
from compeft_server.app.server import Settings, start
from compeft_server.data_directory import open_ledger
from compeft_server.domain.limits import Limits
from compeft_server.flower.conductor import Conductor, ConductorConfig
from compeft_server.identity.aggregator_keys import own_key

EXPERT, RUN, DEADLINE_S = "benchmark", "run", 3600.0
ORIGIN = Origin(b"\x01" * 32, b"{}")


@dataclass(frozen=True, slots=True)
class Links:
    """How both links compress, which tensors go as bfloat16 rather than ternary, and the unit in which a tensor is counted (1 where
    none is given): what trains at a 20 times larger rate moves 20 times as far, and would fill the top k by itself.

    budget_bytes: most payload bytes of a client and round, both directions; it lowers the densities until they fit. rate: the server's
    learning rate. centred: heads whose task vector travels less its median row.
    """

    up: Compression
    down: Compression
    dense: tuple[str, ...] = ()
    units: Mapping[str, float] = field(default_factory=dict)
    budget_bytes: int | None = None
    rate: float = 1.0
    centred: tuple[str, ...] = ()


class Exchange:
    """One run of our system."""

    def __init__(self, links: Links, layout: Layout, seed: int, bounds: list[float], clients: int) -> None:
        self._links, self._clients = links, clients
        self._folder = Path(tempfile.mkdtemp())
        settings = Settings(self._folder / "data", limits=Limits(max_calls_per_client=8))
        self._ledger = open_ledger(settings.data)
        self._server, port = start(settings, self._ledger)
        aggregator, address = own_key(settings.data).public, f"127.0.0.1:{port}"
        conductor = new_key()
        self._ledger.enrol("conductor", conductor.public, "conductor", now_ms())
        policy_admin.rule(self._ledger, "allow", "*", "role:edge", policy_admin.USUAL["edge"], now_ms())
        self._conductor = Conductor(ConductorConfig(address, conductor, aggregator))
        self._flat = layout
        self._layout = layout_of({t.name: t.shape for t in layout.tensors}, dense=links.dense)
        self._most_bytes = (links.budget_bytes or 0) // 2
        by_name = dict(zip([t.name for t in layout.tensors], bounds, strict=True))
        self._publish(seed, [by_name[t.name] for t in self._layout.tensors])
        self._edges = []
        for number in range(clients):
            key = new_key()
            self._ledger.enrol(f"client-{number}", key.public, "edge", now_ms())
            self._edges.append(EdgeClient(Edge(address, key, aggregator, self._folder / f"state-{number}")))
        self._synced: list[Synced] = [edge.sync(EXPERT) for edge in self._edges]
        self._task = self._open(1)
        self._count()

    @staticmethod
    def factors(_number: int) -> str:
        """Both factors train."""
        return "AB"

    def fetch(self, client: int) -> Vector:
        """The state that this client has."""
        return self._outward(self._synced[client].vector)

    def send(self, number: int, client: int, task_vector: Vector, examples: int) -> None:
        """Submit one client's task vector."""
        self._edges[client].submit(self._task, Trained(self._inward(task_vector), examples, {}, ORIGIN))

    def close(self, number: int) -> Vector:
        """Merge, publish, and let every client fetch the new version."""
        self._conductor.close_round(
            EXPERT,
            RUN,
            number,
            "average",
            1.0,
            self._links.down,
            optimizer=ServerOptimizer(learning_rate=self._links.rate),
            max_payload_bytes=self._most_bytes,
        )
        self._synced = [edge.sync(EXPERT) for edge in self._edges]
        self._count()
        self._task = self._open(number + 1)
        return self.fetch(0)

    def finish(self) -> None:
        """Stop the aggregator."""
        for edge in self._edges:
            edge.__exit__()
        self._server.stop(None).wait()
        self._ledger.close()
        shutil.rmtree(self._folder)

    def _open(self, number: int) -> RoundTask:
        opened = self._conductor.open_round(EXPERT, RUN, number, DEADLINE_S)
        return RoundTask(
            EXPERT,
            RUN,
            number,
            opened.round_nonce,
            opened.base_version,
            self._links.up,
            max_payload_bytes=self._most_bytes,
            centred=self._links.centred,
        )

    def _publish(self, seed: int, bounds: list[float]) -> None:
        self._conductor.publish(
            pb.Genesis(
                expert=EXPERT,
                base_model_digest=ORIGIN.base_model_digest,
                adapter_config_digest=ORIGIN.adapter_config_digest,
                adapter_config=ORIGIN.adapter_config,
                layout=layout_to_proto(self._layout),
                seeded=pb.SeededState(seed=seed, bounds=bounds),
                state_digest=state_digest(self._layout, seeded_state(self._layout, seed, bounds)),
            )
        )

    def _count(self) -> None:
        """Bytes so far; a call is recorded just after its answer has left, so wait until the ledger stands still."""
        before = -1
        while before != (now := len(self._ledger.transfers(EXPERT))):
            before = now
            time.sleep(0.05)
        moved = self._ledger.transfers(EXPERT)
        self.sent_up, self.sent_down = sum(t.wire_received_bytes for t in moved), sum(t.wire_sent_bytes for t in moved)

    def _inward(self, vector: Vector) -> Vector:
        arrays = unflatten(self._flat, vector)
        return flatten(self._layout, {n: a / np.float32(self._links.units.get(n, 1.0)) for n, a in arrays.items()})

    def _outward(self, vector: Vector) -> Vector:
        arrays = unflatten(self._layout, vector)
        return flatten(self._flat, {n: a * np.float32(self._links.units.get(n, 1.0)) for n, a in arrays.items()})
