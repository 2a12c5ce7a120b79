"""Watching: a folder that follows an expert, through new versions, restarts, commands and signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import pytest

from compeft_client.cli.main import run
from compeft_client.cli.publish import seconds_of
from compeft_client.delivery.pull import Delivered, Reference
from compeft_client.delivery.watch import WatchCallbacks, WatchSettings, follow, watch
from compeft_client.exchange.package_client import PackageClient
from compeft_client.identity.edge_config import Edge
from compeft_client.packing.pack import unpack
from compeft_core.errors import InputError
from compeft_proto.clock import now_ms
from compeft_proto.keys import SigningKey, new_key
from compeft_server.app.server import Settings, start
from compeft_server.data_directory import open_ledger
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.ledger.ledger import Ledger
from tests.client.delivery.conftest import PACKAGE, edge_at, packed, publisher
from tests.client.delivery.test_push import contents, key_file, options
from tests.rounds.conftest import EXPERT, World, grant_usual


@dataclass
class Heard:
    """What a watcher said."""

    changed: list[Delivered] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)

    @property
    def callbacks(self) -> WatchCallbacks:
        return WatchCallbacks(self.changed.append, self.trouble.append)


def wait_for(ready: Callable[[], bool], limit_s: float = 60.0) -> None:
    give_up = time.monotonic() + limit_s
    while not ready():
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.fixture
def edge(world: World) -> Edge:
    return edge_at(world, "watcher", world.enrol("watcher"))


def look(edge: Edge, settings: WatchSettings, heard: Heard) -> bool:
    """Look once."""
    with PackageClient(edge) as client:
        return follow(client, edge, settings, threading.Event(), heard.callbacks)


def test_a_watched_folder_becomes_each_new_version_whole(world: World, edge: Edge, tmp_path: Path) -> None:
    heard, settings = Heard(), WatchSettings(Reference(PACKAGE), tmp_path / "served")
    for version in range(3):
        file = packed(tmp_path, version)
        publisher(world).push(PACKAGE, file.read_bytes())
        held = os.open(settings.directory, os.O_RDONLY) if version else None
        look(edge, settings, heard)
        unpack(file, tmp_path / f"unpacked-{version}")
        assert contents(settings.directory) == contents(tmp_path / f"unpacked-{version}")
        if held is not None:
            assert sorted(os.listdir(held)) == sorted(contents(settings.directory))
            os.close(held)
    assert [got.version for got in heard.changed] == [0, 1, 2]
    kept = sorted(p.name for p in tmp_path.glob(".served.*"))
    assert [name.split(".")[2].split("-")[0] for name in kept] == ["1", "2"]


def test_a_composed_expert_is_followed_too(world: World, edge: Edge, tmp_path: Path) -> None:
    heard, settings = Heard(), WatchSettings(Reference(EXPERT), tmp_path / "served")
    look(edge, settings, heard)
    look(edge, settings, heard)
    assert [got.version for got in heard.changed] == [0]
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(contents(settings.directory))


def test_an_idle_look_costs_few_bytes_and_changes_nothing(world: World, edge: Edge, tmp_path: Path) -> None:
    publisher(world).push(PACKAGE, packed(tmp_path, 1).read_bytes())
    heard, settings = Heard(), WatchSettings(Reference(PACKAGE), tmp_path / "served")
    with PackageClient(edge) as client:
        for _ in range(4):
            follow(client, edge, settings, threading.Event(), heard.callbacks)
    mine = lambda: [t for t in world.ledger.transfers(PACKAGE) if t.keyid == edge.key.keyid]  # noqa: E731
    wait_for(lambda: len(mine()) == 6)
    assert len(heard.changed) == 1
    assert all(t.payload_bytes == 0 and t.wire_received_bytes + t.wire_sent_bytes < 1400 for t in mine()[-2:])


def test_the_command_runs_after_each_change_and_again_if_the_watcher_ended_before_it(
    world: World, edge: Edge, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    script = f"import os; open({str(log)!r}, 'a').write(' '.join(os.environ[n] for n in ('COMPEFT_EXPERT', 'COMPEFT_VERSION')) + '\\n')"
    settings = WatchSettings(Reference(PACKAGE), tmp_path / "served")
    with_command = replace(settings, command=[sys.executable, "-c", script])
    publisher(world).push(PACKAGE, packed(tmp_path, 1).read_bytes())
    look(edge, settings, Heard())
    for _ in range(2):
        assert look(edge, with_command, Heard())
    publisher(world).push(PACKAGE, packed(tmp_path, 2).read_bytes())
    look(edge, with_command, Heard())
    assert log.read_text() == f"{PACKAGE} 0\n{PACKAGE} 1\n"


def test_a_command_that_fails_is_told_of_and_the_new_version_stays(world: World, edge: Edge, tmp_path: Path) -> None:
    publisher(world).push(PACKAGE, packed(tmp_path, 1).read_bytes())
    heard, settings = Heard(), WatchSettings(Reference(PACKAGE), tmp_path / "served", ["false"])
    assert not look(edge, settings, heard)
    assert (len(heard.changed), heard.trouble) == (1, [f"false ended with code 1 after {PACKAGE} version 0"])
    with pytest.raises(InputError, match="cannot run"):
        look(edge, replace(settings, command=["/no/such/thing"], directory=tmp_path / "other"), heard)


def test_a_folder_that_is_no_link_is_left_alone(world: World, edge: Edge, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    with pytest.raises(InputError, match="no link"):
        watch(edge, WatchSettings(Reference(PACKAGE), tmp_path / "served"), threading.Event(), Heard().callbacks)


@dataclass
class Site:
    """An aggregator that can go away and come back at the same address."""

    data: Path
    port: int
    key: SigningKey
    ledger: Ledger
    server: grpc.Server | None = None

    def up(self) -> None:
        self.server, _ = start(Settings(self.data, port=self.port), self.ledger)

    def down(self) -> None:
        if self.server is not None:
            self.server.stop(None).wait()
        self.server = None

    def edge(self, name: str, role: str) -> Edge:
        key = new_key()
        self.ledger.enrol(name, key.public, role, now_ms())  # type: ignore[arg-type]
        state = self.data.parent / f"state-{name}"
        return Edge(f"127.0.0.1:{self.port}", key, self.key.public, state, patience_s=20)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = tmp_path / "data"
    made = Site(data, port, own_key(data), open_ledger(data))
    grant_usual(made.ledger)
    yield made
    made.down()
    made.ledger.close()


def test_a_watcher_waits_for_an_aggregator_that_is_away_and_for_an_expert_that_is_not_there_yet(
    site: Site, tmp_path: Path
) -> None:
    heard, stop = Heard(), threading.Event()
    settings = WatchSettings(Reference(PACKAGE), tmp_path / "served", every_s=0.1)
    reading, writing = site.edge("reader", "reader"), site.edge("conductor", "conductor")
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(watch, reading, settings, stop, heard.callbacks)
        try:
            wait_for(lambda: any("cannot be reached" in text for text in heard.trouble))
            site.up()
            wait_for(lambda: any("no expert" in text for text in heard.trouble))
            with PackageClient(writing) as client:
                client.push(PACKAGE, packed(tmp_path, 1).read_bytes())
            wait_for(lambda: len(heard.changed) == 1)
            site.down()
            count = len(heard.trouble)
            wait_for(lambda: len(heard.trouble) > count)
            site.up()
            with PackageClient(writing) as client:
                client.push(PACKAGE, packed(tmp_path, 2).read_bytes())
            wait_for(lambda: len(heard.changed) == 2)
        finally:
            stop.set()
        done.result()
    unpack(tmp_path / "expert-2.expert", tmp_path / "unpacked")
    assert contents(settings.directory) == contents(tmp_path / "unpacked")


def test_the_command_follows_until_it_is_told_to_stop(world: World, tmp_path: Path) -> None:
    publisher(world).push(PACKAGE, packed(tmp_path, 1).read_bytes())
    key = key_file(tmp_path, "reader", world.enrol("reader"))
    arguments = ["watch", PACKAGE, "-o", str(tmp_path / "served"), *options(world, key, "watch"), "--format", "json"]
    command = [str(Path(sys.executable).parent / "compeft"), *arguments, "--every", "0.1s"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["version"] == 0
    publisher(world).push(PACKAGE, packed(tmp_path, 2).read_bytes())
    assert json.loads(child.stdout.readline())["version"] == 1
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (0, b"")
    assert run([*arguments, "--once"]) == 0
    assert run([*arguments, "--once", "--exec", "false"]) == 1


def test_times_are_read_with_their_units() -> None:
    assert [seconds_of(text) for text in ("30s", "5m", "1h", "0.5")] == [30, 300, 3600, 0.5]
    for wrong in ("", "s", "-1s", "nan", "inf", "5d"):
        with pytest.raises(InputError, match="invalid duration"):
            seconds_of(wrong)
