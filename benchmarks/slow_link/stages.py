"""Clients as processes, told what to do through pipes, all at once; and the stages that their times add up to."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Protocol

import psutil

from benchmarks.slow_link.link import Link, Links, Marks, links

STAGES = ("compress", "up", "check", "merge", "down", "apply")
"""Of the client that is last, before and after the merge."""

PROCESSOR = ("client, before", "checks", "merge", "client, after")


class Client(Protocol):
    """One client of an arm, in a process of its own. Times are of time.monotonic()."""

    def get_ready(self, address: str, number: int, task: Any) -> None:
        """Connect, know the version that round `number` builds on, have the task vector at hand."""

    def submit(self) -> float:
        """Trained -> accepted; when that was."""

    def take_over(self) -> float:
        """Published -> applied; when that was."""

    def state(self) -> str:
        """A digest of the state that this led to."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A running server at `target`, how to make a client of it from each of `clients`, and what its conductor does."""

    target: str
    pid: int
    make: Callable[[Any], Client]
    clients: Sequence[Any]
    open_round: Callable[[int], Any]
    close_round: Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One arm over one link: seconds from trained to applied everywhere and of each stage; bytes up and down of one client; processor
    seconds: of the busiest client, of the server for all checks together, of the server for the merge, of the busiest client again.
    """

    seconds: float
    stages: dict[str, float]
    up_bytes: int
    down_bytes: int
    processor: dict[str, float]

    @property
    def alone_s(self) -> float:
        """Seconds on machines of their own: the links as measured, one processor's seconds for the rest; not: waiting for disks."""
        return self.stages["up"] + self.stages["down"] + sum(self.processor.values())


class Crew:
    """All clients of an arm."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self._pipes = pipes

    def all(self, method: str, *arguments: Sequence[Any]) -> list[Any]:
        """Call `method` in every client at once, client i with the i-th of each of `arguments`; (answer, processor seconds) of each."""
        for number, pipe in enumerate(self._pipes):
            pipe.send((method, [each[number] for each in arguments]))
        return [pipe.recv() for pipe in self._pipes]


@contextmanager
def crew(make: Callable[[Any], Client], values: Sequence[Any]) -> Iterator[Crew]:
    """A process for each of `values`, holding `make(value)`."""
    context = get_context("spawn")
    ends = [context.Pipe() for _ in values]
    processes = [
        context.Process(target=_obey, args=(there, make, value), daemon=True)
        for (_, there), value in zip(ends, values, strict=True)
    ]
    for process in processes:
        process.start()
    for _, there in ends:
        there.close()
    try:
        yield Crew([here for here, _ in ends])
    finally:
        for process in processes:
            process.terminate()
            process.join()
        for here, _ in ends:
            here.close()


def _obey(pipe: Connection, make: Callable[[Any], Client], value: Any) -> None:
    client = make(value)
    while True:
        method, arguments = pipe.recv()
        busy = time.process_time()
        answer = getattr(client, method)(*arguments)
        pipe.send((answer, time.process_time() - busy))


def race(arm: Arm, link: Link) -> Outcome:
    """A round without the slow links, so that everything has run once; then one over them, timed."""
    with crew(arm.make, arm.clients) as clients, links(arm.target, link, len(arm.clients)) as slow:
        direct = Links(None, [arm.target] * len(arm.clients))
        _round(arm, clients, direct, 1)
        return _round(arm, clients, slow, 2)


def _round(arm: Arm, clients: Crew, over: Links, number: int) -> Outcome:
    task, count = arm.open_round(number), len(arm.clients)
    clients.all("get_ready", over.addresses, [number] * count, [task] * count)
    over.marks()
    busy, started = [_busy_s(arm.pid)], time.monotonic()
    submitted = clients.all("submit")
    before = over.marks()
    busy.append(_busy_s(arm.pid))
    arm.close_round(number)
    merged = time.monotonic()
    busy.append(_busy_s(arm.pid))
    applied = clients.all("take_over")
    after = over.marks()
    assert len({state for state, _ in clients.all("state")}) == 1, "the clients have different states"
    times = [max(s for _, s in submitted), busy[1] - busy[0], busy[2] - busy[1], max(s for _, s in applied)]
    return _outcome(
        (started, [at for at, _ in submitted], merged, [at for at, _ in applied]),
        before,
        after,
        dict(zip(PROCESSOR, times, strict=True)),
    )


def _busy_s(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def _outcome(
    times: tuple[float, Sequence[float], float, Sequence[float]],
    before: Sequence[tuple[Marks, Marks]],
    after: Sequence[tuple[Marks, Marks]],
    processor: dict[str, float],
) -> Outcome:
    """Split by the client that was last in each half; `before` and `after` the merge are what passed on the links."""
    started, submitted, merged, applied = times
    slow = max(range(len(submitted)), key=submitted.__getitem__)
    late = max(range(len(applied)), key=applied.__getitem__)
    up, down = before[slow][0], after[late][1]
    ends = [up.first_s, up.last_s, submitted[slow], merged, down.last_s, applied[late]]
    starts = [started, *ends[:-1]]
    stages = {name: end - start for name, start, end in zip(STAGES, starts, ends, strict=True)}
    return Outcome(applied[late] - started, stages, up.passed, down.passed, processor)
