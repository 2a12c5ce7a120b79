"""Bad links: a client at 1 kB/s beside fast ones, and a link with latency that breaks at random."""

import random
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace

from compeft_client.exchange import EdgeClient
from tests.exchange.conftest import EXPERT, World, synced_by, trained


class Throttle:
    """A TCP proxy to `target` that lets so many bytes a second pass towards it."""

    def __init__(self, target: str, bytes_per_s: int) -> None:
        host, port = target.rsplit(":", 1)
        self._target, self._rate = (host, int(port)), bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open = [self._listener]
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.passed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._open += [client, server]
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()
                threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _up(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(self._rate // 10):
                time.sleep(len(data) / self._rate)
                sink.sendall(data)
                self.passed += len(data)

    @staticmethod
    def _down(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)


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


class Lossy(Throttle):
    """A link that takes 20 ms each way, and at random stands still for 0.3 s or breaks all connections."""

    def __init__(self, target: str, seed: int) -> None:
        self._random = random.Random(seed)
        self.breaks = 0
        super().__init__(target, 10**9)

    def _up(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                time.sleep(0.3 if self._random.random() < 0.05 else 0.02)
                if self._random.random() < 0.15:
                    self.breaks += 1
                    for one in (source, sink):
                        one.shutdown(socket.SHUT_RDWR)
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
