"""This exchange: `compeft serve` as a process, its real clients, a real conductor; signed, checked, durable on both sides. Without TLS."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.slow_link.stages import Arm
from benchmarks.slow_link.work import lora_layout, task_vector
from compeft_client.exchange.edge_client import EdgeClient, Trained
from compeft_client.identity.edge_config import Edge
from compeft_core import Codec, Compression, Layout, seeded_state, state_digest
from compeft_proto.clock import now_ms
from compeft_proto.convert import layout_to_proto
from compeft_proto.keys import new_key, public_key_from_pem, signing_key_from_pem
from compeft_proto.round_task import Origin, RoundTask
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.admin import policy_admin
from compeft_server.data_directory import open_ledger
from compeft_server.flower.conductor import Conductor, ConductorConfig
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.ledger.ledger import Ledger

EXPERT, RUN, SCALE = "slow-link", "run", "norm"
ORIGIN = Origin()


@dataclass(frozen=True, slots=True)
class Way:
    """Densities of the updates and of the versions, and the codec of both."""

    up: float
    down: float
    codec: Codec

    @property
    def name(self) -> str:
        """For a table."""
        return f"ours {self.up:.0%} up, {self.down:.0%} down, {self.codec}"


@dataclass(frozen=True, slots=True)
class Setting:
    """Parameters, where the client keeps its memory, its key, whom it trusts (PEM), which client this is."""

    size: int
    state: Path
    key: bytes
    aggregator: bytes
    number: int


class OurClient:
    """One EdgeClient."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._layout = setting, lora_layout(setting.size)

    def get_ready(self, address: str, number: int, task: RoundTask) -> None:
        """As an edge client before it trains: it has the version that the round builds on."""
        setting = self._setting
        key, aggregator = signing_key_from_pem(setting.key, "key", 0o600), public_key_from_pem(setting.aggregator, "aggregator")
        self._client, self._task = EdgeClient(Edge(address, key, aggregator, setting.state)), task
        self._client.sync(EXPERT, task.version, RUN, number)
        self._trained = Trained(task_vector(self._layout, setting.number, number), 100, {}, ORIGIN)

    def submit(self) -> float:
        """Compress, keep, seal, send, hear that it is accepted."""
        self._client.submit(self._task, self._trained)
        return time.monotonic()

    def take_over(self) -> float:
        """Fetch, check, apply, keep; settle the residual."""
        self._synced = self._client.sync(EXPERT, None, RUN, self._task.round)
        return time.monotonic()

    def state(self) -> str:
        """Its digest."""
        return state_digest(self._synced.layout, self._synced.vector).hex()


@contextmanager
def ours(folder: Path, size: int, way: Way, clients: int) -> Iterator[Arm]:
    """An aggregator with an expert of that many parameters."""
    ledger, conductor_key = open_ledger(folder / "data"), new_key()
    ledger.enrol("conductor", conductor_key.public, "conductor", now_ms())
    settings = [_enrolled(ledger, folder, size, number) for number in range(clients)]
    policy_admin.rule(ledger, "allow", EXPERT, "role:edge", policy_admin.USUAL["edge"], now_ms())
    with _serving(folder / "data") as (address, pid):
        conductor = Conductor(ConductorConfig(address, conductor_key, own_key(folder / "data").public))
        conductor.publish(_genesis(lora_layout(size)))

        def open_round(number: int) -> RoundTask:
            opened = conductor.open_round(EXPERT, RUN, number, 3600.0)
            return RoundTask(
                EXPERT, RUN, number, opened.round_nonce, opened.base_version, Compression(way.up, SCALE), (), way.codec
            )

        def close_round(number: int) -> object:
            closed = conductor.close_round(EXPERT, RUN, number, "average", 1.0, Compression(way.down, SCALE), codec=way.codec)
            assert closed.accepted == clients
            return closed

        yield Arm(address, pid, OurClient, settings, open_round, close_round)
    ledger.close()


def _enrolled(ledger: Ledger, folder: Path, size: int, number: int) -> Setting:
    key = new_key()
    ledger.enrol(f"edge-{number}", key.public, "edge", now_ms())
    return Setting(size, folder / f"state-{number}", key.to_pem(), own_key(folder / "data").public.to_pem(), number)


def _genesis(layout: Layout) -> pb.Genesis:
    bounds = [0.02 if t.name.endswith("A") else 0.0 for t in layout.tensors]
    return pb.Genesis(
        expert=EXPERT,
        base_model_digest=ORIGIN.base_model_digest,
        adapter_config_digest=ORIGIN.adapter_config_digest,
        adapter_config=ORIGIN.adapter_config,
        layout=layout_to_proto(layout),
        seeded=pb.SeededState(seed=7, bounds=bounds),
        state_digest=state_digest(layout, seeded_state(layout, 7, bounds)),
    )


@contextmanager
def _serving(data: Path) -> Iterator[tuple[str, int]]:
    command = [str(Path(sys.executable).parent / "compeft"), "serve", "--data", str(data), "--port", "0", "--format", "json"]
    with (data / "serve.log").open("wb") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:
        assert process.stdout is not None
        try:
            yield next(json.loads(line)["address"] for line in process.stdout if line.startswith(b'{"address"')), process.pid
        finally:
            process.terminate()
            process.wait(60)
