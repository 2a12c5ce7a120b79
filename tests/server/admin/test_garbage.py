"""Garbage collection removes what nobody needs, and nothing else, while the aggregator runs."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa

from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.identity.edge_config import Edge
from compeft_core import Compression, layout_of
from compeft_core.errors import FormatError
from compeft_proto.clock import now_ms
from compeft_proto.round_task import RoundTask
from compeft_server.admin.garbage_collection import Collected, Grace, collect, named
from compeft_server.admin.lineage import Versions
from compeft_server.chunks.directory_store import DirectoryStore
from compeft_server.ledger import schema
from tests.relay import Relay
from tests.rounds.conftest import EXPERT, RUN, World, genesis, running, synced_by, trained

LARGE = layout_of({"a.lora_A": (1000, 2000), "a.lora_B": (1000, 1000)})
HALF = Compression(0.5, "norm")
MONTH_MS = 30 * 24 * 60 * 60 * 1000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running(tmp_path) as made:
        yield made


@pytest.fixture
def store(world: World) -> DirectoryStore:
    return DirectoryStore(world.folder / "data")


def run_rounds(world: World, clients: list[EdgeClient], numbers: range) -> None:
    for number in numbers:
        task = world.open_round(number)
        for i, client in enumerate(clients):
            synced_by(client, task)
            client.submit(task, trained(10 * number + i))
        world.close_round(number)


def age(world: World) -> None:
    """Make everything in the store a month old."""
    for folder in ("chunks", "partial"):
        for path in (world.folder / "data" / folder).rglob("*"):
            os.utime(path, ((now_ms() - MONTH_MS) / 1000,) * 2)


def collected(world: World, store: DirectoryStore, dry_run: bool = False) -> Collected:
    return collect(store, world.ledger, now_ms(), Grace(), dry_run)


def test_what_nobody_names_goes_and_everything_still_recomputes(world: World, store: DirectoryStore) -> None:
    client = world.edge("a")
    run_rounds(world, [client, world.edge("b")], range(1, 4))
    orphan = store.put(b"of a version that was never published")
    age(world)
    superseded = {sha256 for v in world.ledger.versions(EXPERT, 0, 2) for sha256 in v.residual}
    done = collected(world, store)
    assert {s.sha256 for s in store.chunks()} == named(world.ledger)
    assert done.removed_chunks == len(superseded | {orphan})
    assert done.named_chunks == len(named(world.ledger))
    versions = Versions(world.aggregator, store, world.ledger)
    for number in (3, 0, 1, 2, 3):
        versions.verify(EXPERT, number)
    run_rounds(world, [client], range(4, 6))
    assert client.sync(EXPERT).version == 5
    versions.forget(EXPERT, next(m for m in world.ledger.members() if m.name == "b").public.keyid, now_ms())
    for number in range(7):
        Versions(world.aggregator, store, world.ledger).verify(EXPERT, number)


def test_a_dry_run_says_the_same_and_removes_nothing(world: World, store: DirectoryStore) -> None:
    run_rounds(world, [world.edge("a"), world.edge("b")], range(1, 3))
    store.put(b"garbage")
    store.append("sender", b"\x01" * 32, b"part")
    age(world)
    before = sorted(s.sha256 for s in store.chunks())
    said = collected(world, store, dry_run=True)
    assert sorted(s.sha256 for s in store.chunks()) == before
    assert store.received("sender", b"\x01" * 32) == 4
    assert said == collected(world, store)
    assert said.removed_chunks == 2
    assert said.removed_bytes > len(b"garbage")
    assert said.removed_parts == 1


def test_what_was_claimed_within_the_grace_period_stays(world: World, store: DirectoryStore) -> None:
    old, found, new = (store.put(data) for data in (b"old", b"found", b"new"))
    age(world)
    store.put(b"new")
    assert store.has(found)
    done = collected(world, store)
    assert (done.removed_chunks, done.young_chunks) == (1, 2)
    assert {s.sha256 for s in store.chunks()} >= {found, new}
    assert old not in {s.sha256 for s in store.chunks()}


def test_the_base_of_an_open_round_keeps_its_residual(world: World, store: DirectoryStore) -> None:
    client = world.edge("a")
    run_rounds(world, [client, world.edge("b")], range(1, 3))
    task = world.open_round(3)
    synced_by(client, task)
    client.submit(task, trained(3))
    base = world.ledger.versions(EXPERT, 1, 2)[0]
    world.ledger.append(replace(base, version=3, residual=()))
    age(world)
    collected(world, store)
    assert {s.sha256 for s in store.chunks()} >= set(base.residual)


def test_a_ledger_that_cannot_be_read_loses_nothing(world: World, store: DirectoryStore) -> None:
    run_rounds(world, [world.edge("a")], range(1, 3))
    age(world)
    with world.ledger._engine.begin() as connection:
        connection.execute(sa.update(schema.versions).where(schema.versions.c.version == 1), {"envelope": b"\xff"})
    before = sorted(s.sha256 for s in store.chunks())
    with pytest.raises(FormatError, match="nothing was removed"):
        collected(world, store)
    assert sorted(s.sha256 for s in store.chunks()) == before


def test_an_upload_in_flight_is_left_alone_and_arrives(world: World, store: DirectoryStore) -> None:
    halfway = Halfway(world.address)
    world.conductor().publish(genesis(LARGE, "large"))
    opened = world.conductor().open_round("large", RUN, 1, 60.0)
    task = RoundTask("large", RUN, 1, opened.round_nonce, 0, HALF)
    edge = Edge(halfway.address, world.enrol("slow"), world.aggregator.public, world.folder / "slow", patience_s=0)
    EdgeClient(edge).sync("large")
    halfway.hold_after = 400_000
    parts = world.folder / "data" / "partial"
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(EdgeClient(edge).submit, task, trained(1, LARGE))
        assert halfway.holding.wait(30)
        World._wait(lambda: any(parts.iterdir()))
        held = [path.name for path in parts.iterdir()]
        done = collect(store, world.ledger, now_ms() + 2 * 60 * 60 * 1000, Grace(1, 3 * 60 * 60 * 1000))
        assert held == [path.name for path in parts.iterdir()] != []
        assert (done.removed_parts, sending.done()) == (0, False)
        halfway.go_on.set()
        receipt = sending.result(30)
    assert receipt.payload_bytes > halfway.hold_after
    assert world.conductor().close_round("large", RUN, 1, "average", 1.0, HALF).accepted == 1
    halfway.close()


def test_chunks_that_are_claimed_while_they_are_collected_are_never_lost(tmp_path: Path) -> None:
    store, stop = DirectoryStore(tmp_path), threading.Event()
    data = [bytes([i]) * 100 for i in range(8)]
    lost: list[bytes] = []

    def remove() -> None:
        collector = DirectoryStore(tmp_path)
        while not stop.is_set():
            for chunk in list(collector.chunks()):
                collector.remove(chunk.sha256, now_ms() - 60_000)

    with ThreadPoolExecutor(1) as pool:
        removing = pool.submit(remove)
        for i in range(400):
            sha256 = store.put(data[i % 8])
            path = tmp_path / "chunks" / sha256.hex()[:2] / sha256.hex()
            with suppress(FileNotFoundError):
                os.utime(path, (0, 0))
            if store.put(data[i % 8]) and not path.exists():
                lost.append(sha256)
        stop.set()
        removing.result()
    assert lost == []


class Halfway(Relay):
    """A link that stops a connection after a number of bytes, until it is told to go on."""

    def __init__(self, target: str) -> None:
        self.hold_after: int | None = None
        self.holding, self.go_on = threading.Event(), threading.Event()
        super().__init__(target)

    def up(self) -> Callable[[socket.socket, socket.socket], None]:
        return partial(self._until, hold_after=self.hold_after)

    def _until(self, source: socket.socket, sink: socket.socket, hold_after: int | None) -> None:
        passed = 0
        while data := source.recv(16384):
            sink.sendall(data)
            passed += len(data)
            if hold_after is not None and passed >= hold_after:
                self.holding.set()
                self.go_on.wait(30)
