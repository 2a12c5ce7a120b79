"""A slow link as a TCP proxy: one process for all links, each with a rate, a latency and a loss of its own, in both directions.

What it models: a direction's rate, shared by all connections of the link; the one-way delay; TCP's slow start, also after a pause (ten
segments, doubled each round trip); a lost segment as a pause of one round trip. What it does not: congestion control after a loss, and
losses of acknowledgements. Both would cost the side that sends more bytes more.
"""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

SEGMENT = 1460
FIRST_WINDOW = 10 * SEGMENT
PAUSE_S = 0.2
"""A connection that sent nothing for so long starts slowly again (Linux: its retransmission timeout, at least 0.2 s)."""
QUEUE_S = 0.02
"""How far ahead of its rate a link takes bytes up: it evens out that a sleep ends late."""
DATA_BYTES = 512
"""Less than that at once is control traffic: acknowledgements and window updates of HTTP/2."""
BUFFER = 2**16


@dataclass(frozen=True, slots=True)
class Link:
    """Bits a second each way, round trip in seconds, fraction of segments lost."""

    bits_per_s: float
    round_trip_s: float
    loss: float

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.bits_per_s / 1e6:g} Mbit/s"

    @property
    def part_bytes(self) -> int:
        """What goes at once: 5 ms of the link, a segment at least, a first window at most."""
        return int(min(FIRST_WINDOW, max(SEGMENT, 0.005 * self.bits_per_s / 8)))


@dataclass(slots=True)
class Marks:
    """One direction since it was last asked for: bytes, when the first left, when the last that were data arrived (monotonic, s)."""

    passed: int = 0
    first_s: float = 0.0
    last_s: float = 0.0


class Direction:
    """One direction of a link."""

    def __init__(self, link: Link, seed: int) -> None:
        self._link, self._random, self._free_s = link, random.Random(seed), 0.0
        self.marks = Marks()

    async def carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Take bytes from `source` at the link's rate; `sink` gets them later."""
        loop, start = asyncio.get_running_loop(), SlowStart(self._link)
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivery = asyncio.create_task(self._deliver(under_way, sink))
        with suppress(ConnectionError):
            while data := await source.read(self._link.part_bytes):
                now = loop.time()
                self.marks.first_s = self.marks.first_s or now
                begin = start.admit(max(now, self._free_s), now, len(data))
                self._free_s = begin + 8 * len(data) / self._link.bits_per_s + self._lost(len(data)) * self._link.round_trip_s
                under_way.put_nowait((self._free_s + self._link.round_trip_s / 2, data))
                if self._free_s - now > QUEUE_S:
                    await asyncio.sleep(self._free_s - now - QUEUE_S)
        under_way.put_nowait((loop.time() + self._link.round_trip_s / 2, b""))
        await delivery

    async def _deliver(self, under_way: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            while True:
                arrival, data = await under_way.get()
                await asyncio.sleep(max(0.0, arrival - loop.time()))
                if not data:
                    break
                sink.write(data)
                await sink.drain()
                self.marks.passed += len(data)
                if len(data) >= DATA_BYTES:
                    self.marks.last_s = loop.time()
            sink.write_eof()

    def _lost(self, count: int) -> int:
        """How many segments of a part are lost."""
        return sum(self._random.random() < self._link.loss for _ in range(-(-count // SEGMENT)))


class SlowStart:
    """What one direction of one connection may have under way."""

    def __init__(self, link: Link) -> None:
        self._link, self._last_s, self._turn_s = link, float("-inf"), 0.0
        self._window = self._left = FIRST_WINDOW

    def admit(self, begin: float, now: float, count: int) -> float:
        """The time at which `begin` and this number of bytes let the last byte leave."""
        if now - self._last_s > PAUSE_S:
            self._window = self._left = FIRST_WINDOW
            self._turn_s = begin + self._link.round_trip_s
        if self._window < self._link.bits_per_s / 8 * self._link.round_trip_s and count > self._left:
            begin = max(begin, self._turn_s)
            self._window *= 2
            self._left, self._turn_s = self._window, begin + self._link.round_trip_s
        self._left -= count
        self._last_s = begin
        return begin


class Proxy:
    """One link to `target`, listening on a port of its own."""

    def __init__(self, target: str, link: Link, seed: int) -> None:
        self._host, self._port = target.rsplit(":", 1)
        self._up, self._down = Direction(link, 2 * seed), Direction(link, 2 * seed + 1)

    async def listen(self) -> str:
        """Start; the address."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=BUFFER)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def marks(self) -> tuple[Marks, Marks]:
        """Up and down since the last time."""
        found = self._up.marks, self._down.marks
        self._up.marks, self._down.marks = Marks(), Marks()
        return found

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, self._port, limit=BUFFER)
        await asyncio.gather(self._up.carry(reader, far_writer), self._down.carry(far_reader, writer))
        far_writer.close()
        writer.close()


class Links:
    """The links of some clients to one target: their addresses, and what has passed on each since the last question. Without a pipe the
    connections are direct and nothing is marked.
    """

    def __init__(self, pipe: Connection | None, addresses: list[str]) -> None:
        self._pipe, self.addresses = pipe, addresses

    def marks(self) -> list[tuple[Marks, Marks]]:
        """(up, down) of each link."""
        if self._pipe is None:
            return [(Marks(), Marks()) for _ in self.addresses]
        self._pipe.send(None)
        return self._pipe.recv()


@contextmanager
def links(target: str, link: Link, clients: int) -> Iterator[Links]:
    """Run that many links to `target` in a process of their own."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(there, target, link, clients), daemon=True)
    process.start()
    try:
        yield Links(here, here.recv())
    finally:
        process.terminate()
        process.join()
        here.close()


def _run(pipe: Connection, target: str, link: Link, clients: int) -> None:
    asyncio.run(_serve(pipe, target, link, clients))


async def _serve(pipe: Connection, target: str, link: Link, clients: int) -> None:
    proxies = [Proxy(target, link, seed) for seed in range(clients)]
    pipe.send([await proxy.listen() for proxy in proxies])
    over = asyncio.Event()

    def answer() -> None:
        try:
            pipe.recv()
        except EOFError:
            over.set()
        else:
            pipe.send([proxy.marks() for proxy in proxies])

    asyncio.get_running_loop().add_reader(pipe.fileno(), answer)
    await over.wait()
