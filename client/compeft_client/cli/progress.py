"""Progress on standard error: a bar after two seconds on a terminal, a line every 30 seconds elsewhere; quick commands stay quiet."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from compeft_client.packing.part_codec import Progress as Tick
from compeft_client.workers import Tell

PATIENCE_S = 2.0
LINE_S = 30.0
"""Seconds between two lines where standard error is not a terminal."""


@contextmanager
def watched(what: str, total: int) -> Iterator[Tick]:
    """A function to tell how many of `total` parameters have just been done."""
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(what, total=total)
    began = printed_at = time.monotonic()

    def tick(done: int) -> None:
        nonlocal printed_at
        bar.advance(task, done)
        now = time.monotonic()
        if console.is_terminal and not bar.live.is_started and now - began > PATIENCE_S:
            bar.start()
        if not console.is_terminal and now - printed_at > LINE_S:
            printed_at = now
            typer.echo(f"{what}: {bar.tasks[task].percentage:.0f} %, {now - began:.0f} s", err=True)

    try:
        yield tick
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def stages(what: str) -> Iterator[Tell]:
    """A function that is told, in a few words, what has just been done, where the number of parameters says little about the time left."""
    console = Console(stderr=True)
    status = console.status(what)
    began = printed_at = time.monotonic()

    def tell(done: str) -> None:
        nonlocal printed_at
        now = time.monotonic()
        line = f"{what}: {done}, {now - began:.0f} s"
        if console.is_terminal and now - began > PATIENCE_S:
            status.update(line)
            status.start()
        if not console.is_terminal and now - printed_at > LINE_S:
            printed_at = now
            typer.echo(line, err=True)

    try:
        yield tell
    finally:
        status.stop()
