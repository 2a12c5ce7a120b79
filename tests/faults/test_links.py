"""Bad links: a client at 1 kB/s beside fast ones, and a link with latency that breaks at random."""

import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from compeft_client.exchange.edge_client import EdgeClient
from tests.relay import Relay, end
from tests.rounds.conftest import EXPERT, World, synced_by, trained


class Throttle(Relay):
    """A link that passes a number of bytes a second to `target`."""

    def __init__(self, target: str, bytes_per_s: int) -> None:
        self._rate = bytes_per_s
        self.passed = 0
        super().__init__(target)

    def up(self) -> Callable[[socket.socket, socket.socket], None]:
        return self._slowly

    def _slowly(self, source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(self._rate // 10):
            time.sleep(len(data) / self._rate)
            sink.sendall(data)
            self.passed += len(data)


def test_a_client_at_1_kb_a_second_ends_and_keeps_nobody_waiting(world: World) -> None:
    task = world.open_round()
    slow, fast = world.edge("slow"), world.edge("fast")
    synced_by(slow, task)
    throttle = Throttle(world.address, 1000)
    results: list[int] = []
    behind = EdgeClient(replace(slow._edge, address=throttle.address))
    thread = threading.Thread(target=lambda: results.append(behind.submit(task, trained(1)).sequence))
    thread.start()
    synced_by(fast, task)
    assert fast.submit(task, trained(2)).sequence == 1
    assert results == [], "the slow one was to be under way still"
    thread.join()
    throttle.close()
    assert results == [1]
    assert throttle.passed > 1000
    assert world.close_round().accepted == 2


class Lossy(Relay):
    """A link that takes 20 ms each way, and at random stands still for 0.3 s or breaks all connections."""

    def __init__(self, target: str, seed: int) -> None:
        self._random = random.Random(seed)
        self.breaks = 0
        super().__init__(target)

    def up(self) -> Callable[[socket.socket, socket.socket], None]:
        return self._with_luck

    def _with_luck(self, source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65536):
            time.sleep(0.3 if self._random.random() < 0.05 else 0.02)
            if self._random.random() < 0.15:
                self.breaks += 1
                end(source)
                end(sink)
                return
            sink.sendall(data)


def test_rounds_over_a_link_that_breaks_at_random_count_each_update_once(world: World) -> None:
    link = Lossy(world.address, seed=5)
    client = world.edge("edge")
    behind = EdgeClient(replace(client._edge, address=link.address, patience_s=60))
    for number in (1, 2, 3):
        task = world.open_round(number)
        synced_by(behind, task)
        assert behind.submit(task, trained(number)).sequence == number
        assert world.close_round(number).accepted == 1
    link.close()
    assert client.sync(EXPERT).version == 3
    assert world.ledger.sequences(EXPERT, client._edge.key.keyid).merged == 3
    assert link.breaks > 0
