"""A real aggregator on a real port, enrolled members with real keys, and clients that talk to it over gRPC."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from compeft_client.exchange.edge_client import EdgeClient, Synced, Trained
from compeft_client.identity.edge_config import Edge
from compeft_core import Compression, Layout, Vector, layout_of, seeded_state, state_digest
from compeft_proto.clock import now_ms
from compeft_proto.convert import layout_to_proto
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.round_task import Origin, RoundTask
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.admin import policy_admin
from compeft_server.app.server import Settings, start
from compeft_server.data_directory import open_ledger
from compeft_server.domain.limits import Limits
from compeft_server.domain.records import Role, Transfer
from compeft_server.flower.conductor import Conductor, ConductorConfig
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.ledger.ledger import Ledger

EXPERT = "sentiment"
RUN = "run-1"
ORIGIN = Origin(b"\x01" * 32, b'{"r":8}')
UPLINK = Compression(0.05, "mean_magnitude")
DOWNLINK = Compression(0.2, "mean_magnitude")
LAYOUT = layout_of({"a.lora_A": (8, 500), "a.lora_B": (300, 8), "head": (2, 10)}, dense=["head"])


def genesis(layout: Layout = LAYOUT, expert: str = EXPERT) -> pb.Genesis:
    """Version 0 from a seed."""
    bounds = [0.05 if "lora_A" in t.name else 0.0 for t in layout.tensors]
    return pb.Genesis(
        expert=expert,
        base_model_digest=ORIGIN.base_model_digest,
        adapter_config_digest=ORIGIN.adapter_config_digest,
        adapter_config=ORIGIN.adapter_config,
        layout=layout_to_proto(layout),
        seeded=pb.SeededState(seed=7, bounds=bounds),
        state_digest=state_digest(layout, seeded_state(layout, 7, bounds)),
    )


def task_vector(seed: int, layout: Layout = LAYOUT) -> Vector:
    """What a client might have trained."""
    return np.random.default_rng(seed).normal(0, 1e-3, layout.size).astype(np.float32)


def trained(seed: int, layout: Layout = LAYOUT) -> Trained:
    """A task vector and what goes with it."""
    return Trained(task_vector(seed, layout), 300, {"loss": 0.5}, ORIGIN)


@dataclass
class World:
    """One running aggregator and what the tests need of it."""

    folder: Path
    address: str
    ledger: Ledger
    aggregator: SigningKey
    offset_ms: list[int]
    conductor_key: SigningKey = field(default_factory=new_key)

    def enrol(self, name: str, role: Role = "edge") -> SigningKey:
        """A new member's key."""
        key = new_key()
        self.ledger.enrol(name, key.public, role, now_ms())
        return key

    def edge(self, name: str, key: SigningKey | None = None) -> EdgeClient:
        """A client with a state directory of its own; enrolled unless it brings a key."""
        folder = self.folder / f"state-{name}"
        return EdgeClient(Edge(self.address, key or self.enrol(name), self.aggregator.public, folder, patience_s=0))

    def conductor(self) -> Conductor:
        """The conductor."""
        return Conductor(ConductorConfig(self.address, self.conductor_key, self.aggregator.public))

    def open_round(self, number: int = 1, deadline_s: float = 60.0) -> RoundTask:
        """Open a round; the task that its clients get."""
        opened = self.conductor().open_round(EXPERT, RUN, number, deadline_s)
        return RoundTask(EXPERT, RUN, number, opened.round_nonce, opened.base_version, UPLINK)

    def close_round(self, number: int = 1) -> pb.RoundStatement:
        """Merge and publish."""
        return self.conductor().close_round(EXPERT, RUN, number, "average", 1.0, DOWNLINK)

    def transfers(self, count: int) -> list[Transfer]:
        """The ledger's first `count` transfers; a call is recorded just after its answer has left."""
        self._wait(lambda: len(self.ledger.transfers(EXPERT)) >= count)
        return self.ledger.transfers(EXPERT)[:count]

    def transfers_of(self, expert: str, direction: str, count: int) -> list[Transfer]:
        """All transfers of an expert in one direction, once there are `count` or no more come."""
        found = lambda: [t for t in self.ledger.transfers(expert) if t.direction == direction]  # noqa: E731
        self._wait(lambda: len(found()) >= count, 3.0)
        return found()

    @staticmethod
    def _wait(ready: Callable[[], bool], limit_s: float = 10.0) -> None:
        give_up = time.monotonic() + limit_s
        while not ready() and time.monotonic() < give_up:
            time.sleep(0.01)

    def everything(self) -> tuple[object, ...]:
        """All that a refused message must leave alone: submissions, versions, open rounds, whole chunks."""
        rounds = self.ledger.rounds(EXPERT)
        submissions = [s for r in rounds for s in self.ledger.submissions(EXPERT, r.run, r.round)]
        versions = self.ledger.versions(EXPERT, -1, self.ledger.head(EXPERT))
        chunks = sorted(p.name for p in (self.folder / "data" / "chunks").rglob("*") if p.is_file())
        return rounds, submissions, versions, chunks


def grant_usual(ledger: Ledger) -> None:
    """What an operator's policy is in most of these tests: every role may do its work with every expert."""
    for role, actions in policy_admin.USUAL.items():
        if role != "conductor":
            policy_admin.rule(ledger, "allow", "*", f"role:{role}", actions, now_ms())


@contextmanager
def running(folder: Path, limits: Limits | None = None) -> Iterator[World]:
    """A running aggregator with one conductor and the expert published."""
    settings = Settings(folder / "data", limits=limits or Limits())
    offset_ms = [0]
    clock: Callable[[], int] = lambda: now_ms() + offset_ms[0]  # noqa: E731
    ledger = open_ledger(settings.data)
    server, port = start(settings, ledger, clock)
    made = World(folder, f"127.0.0.1:{port}", ledger, own_key(settings.data), offset_ms)
    ledger.enrol("conductor", made.conductor_key.public, "conductor", now_ms())
    made.conductor().publish(genesis())
    grant_usual(ledger)
    yield made
    server.stop(None).wait()
    ledger.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """The same, with the limits that it has by default."""
    with running(tmp_path) as made:
        yield made


def synced_by(client: EdgeClient, task: RoundTask) -> Synced:
    """The version that a task builds on."""
    return client.sync(task.expert, task.version, task.run, task.round)
