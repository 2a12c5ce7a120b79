"""Broken transfers, for real: a proxy that cuts connections at a given byte, an aggregator killed and started again."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from compeft_client.exchange.edge_client import EdgeClient, Trained
from compeft_client.exchange.state_directory import StateDirectory
from compeft_client.identity.edge_config import Edge
from compeft_core import Compression, layout_of
from compeft_proto.chunk_refs import CHUNK_BYTES, refs_of
from compeft_proto.clock import now_ms
from compeft_proto.errors import ExpiredError, ReplayError, UnreachableError
from compeft_proto.keys import new_key
from compeft_proto.round_task import RoundTask
from compeft_proto.transport import SubmitDialogue, open_channel, upload
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.app.server import Settings, start
from compeft_server.data_directory import open_ledger
from compeft_server.flower.conductor import Conductor, ConductorConfig
from compeft_server.identity.aggregator_keys import own_key
from tests.relay import Relay, end
from tests.rounds.conftest import EXPERT, ORIGIN, RUN, World, genesis, grant_usual, synced_by, trained

LARGE = layout_of({"a.lora_A": (2000, 2000), "a.lora_B": (2000, 1000)})
HALF = Compression(0.5, "norm")
FRAMING = 20_000


class Cutter(Relay):
    """A link that cuts the next connection after a number of bytes in one direction; None lets everything pass."""

    def __init__(self, target: str) -> None:
        self.up_limit: int | None = None
        self.down_limit: int | None = None
        super().__init__(target)

    def up(self) -> Callable[[socket.socket, socket.socket], None]:
        limit, self.up_limit = self.up_limit, None
        return partial(cut, limit=limit)

    def down(self) -> Callable[[socket.socket, socket.socket], None]:
        limit, self.down_limit = self.down_limit, None
        return partial(cut, limit=limit)


def cut(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
    """Pass a number of bytes, then close both connections."""
    passed = 0
    with suppress(OSError):
        while (limit is None or passed < limit) and (data := source.recv(16384)):
            data = data if limit is None else data[: limit - passed]
            sink.sendall(data)
            passed += len(data)
    end(source)
    end(sink)


@pytest.fixture
def cutter(world: World) -> Iterator[Cutter]:
    made = Cutter(world.address)
    yield made
    made.close()


def patient(world: World, name: str, address: str) -> EdgeClient:
    edge = Edge(address, world.enrol(name), world.aggregator.public, world.folder / f"state-{name}", patience_s=20)
    return EdgeClient(edge)


def large_task(world: World, number: int) -> RoundTask:
    opened = world.conductor().open_round("large", RUN, number, 60.0)
    return RoundTask("large", RUN, number, opened.round_nonce, opened.base_version, HALF)


def large_vector(seed: int) -> Trained:
    values = np.random.default_rng(seed).normal(0, 1e-3, LARGE.size).astype(np.float32)
    return Trained(values, 10, {}, ORIGIN)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.77, 0.999])
def test_an_upload_cut_anywhere_goes_on_and_sends_at_most_one_chunk_twice(world: World, cutter: Cutter, share: float) -> None:
    world.conductor().publish(genesis(LARGE, "large"))
    task = large_task(world, 1)
    client = patient(world, "edge", cutter.address)
    client.sync("large")
    client = EdgeClient(client._edge)  # a fresh connection, to be cut
    size = LARGE.size * 1.5 / 8
    cutter.up_limit = int(share * size)
    receipt = client.submit(task, large_vector(1))
    sent = sum(t.wire_received_bytes for t in world.transfers_of("large", "up", 3))
    assert receipt.payload_bytes <= sent < receipt.payload_bytes + CHUNK_BYTES + FRAMING
    assert world.conductor().close_round("large", RUN, 1, "average", 1.0, HALF).accepted == 1


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_download_cut_anywhere_goes_on_and_fetches_at_most_one_chunk_twice(world: World, cutter: Cutter, share: float) -> None:
    world.conductor().publish(genesis(LARGE, "large"))
    client = patient(world, "edge", world.address)
    task = large_task(world, 1)
    client.sync("large")
    client.submit(task, large_vector(1))
    world.conductor().close_round("large", RUN, 1, "average", 1.0, HALF)
    reader = patient(world, "other", cutter.address)
    payload = world.ledger.versions("large", 0, 1)[0].payload_bytes
    cutter.down_limit = int(share * payload)
    assert reader.sync("large").vector.tobytes() == client.sync("large").vector.tobytes()
    moved = [t for t in world.transfers_of("large", "down", 4) if t.keyid != client._edge.key.keyid]
    assert sum(t.payload_bytes for t in moved) <= payload + CHUNK_BYTES


def test_a_client_killed_after_sending_resumes_with_the_same_update(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round()
    synced_by(client, task)
    first = client.submit(task, trained(1))
    again = EdgeClient(client._edge).resume(EXPERT)
    assert again == first
    assert world.close_round().accepted == 1
    client.sync(EXPERT)
    assert client.resume(EXPERT) is None


def test_an_aggregator_killed_and_started_again_goes_on_where_it_was(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "compeft"),
        "serve",
        "--data",
        str(data),
        "--port",
        str(port),
        "--format",
        "json",
    ]
    ledger, key = open_ledger(data), own_key(data)
    conductor_key, edge_key = (new_key() for _ in range(2))
    ledger.enrol("conductor", conductor_key.public, "conductor", now_ms())
    ledger.enrol("edge", edge_key.public, "edge", now_ms())
    grant_usual(ledger)

    log = tmp_path / "serve.log"

    def serve() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            before = log.read_text().count('{"address"')
            started = subprocess.Popen(command, stdout=output, stderr=output)
        while log.read_text().count('{"address"') == before:
            assert started.poll() is None
            time.sleep(0.05)
        return started

    def serve_later() -> subprocess.Popen[bytes]:
        time.sleep(1.0)
        return serve()

    first = serve()
    conductor = Conductor(ConductorConfig(f"127.0.0.1:{port}", conductor_key, key.public))
    conductor.publish(genesis())
    opened = conductor.open_round(EXPERT, RUN, 1, 60.0)
    task = RoundTask(EXPERT, RUN, 1, opened.round_nonce, 0, Compression(0.05, "norm"))
    client = EdgeClient(Edge(f"127.0.0.1:{port}", edge_key, key.public, tmp_path / "state", patience_s=60))
    client.sync(EXPERT)
    first.kill()
    first.wait()
    with pytest.raises(UnreachableError):
        EdgeClient(Edge(f"127.0.0.1:{port}", edge_key, key.public, tmp_path / "state", patience_s=0)).sync(EXPERT)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(serve_later)
        receipt = client.submit(task, trained(1))
    closed = conductor.close_round(EXPERT, RUN, 1, "average", 1.0, Compression(0.1, "norm"))
    assert (receipt.sequence, closed.accepted, closed.version) == (1, 1, 1)
    assert client.sync(EXPERT).version == 1
    second.result().terminate()
    assert second.result().wait(60) == 0
    ledger.close()


def test_an_update_that_its_client_took_back_is_refused_by_the_next_process_of_the_aggregator(world: World) -> None:
    client, task = world.edge("edge"), world.open_round()
    client.sync(EXPERT, task.version, RUN, 1)
    world.offset_ms[0] = 7_200_000
    with pytest.raises(ExpiredError):
        client.submit(task, trained(1))
    world.offset_ms[0] = 0
    directory = StateDirectory.of(client._edge.state, EXPERT)
    pending = directory.load().pending
    assert pending is not None
    kept, payload = directory.read(pending.envelope), directory.read(pending.payload)
    client.sync(EXPERT)
    assert directory.load().pending is None
    server, port = start(Settings(world.folder / "data"), world.ledger)
    with open_channel(f"127.0.0.1:{port}", None) as channel:
        dialogue = SubmitDialogue(rpc.ExpertExchangeStub(channel).Submit, "there").__enter__()
        with pytest.raises(ReplayError, match="accepted or settled is 1"):
            upload(dialogue, Envelope.FromString(kept), refs_of(payload), payload)
    server.stop(None).wait()
