"""A progress bar on standard error, for people who wait: it appears after two seconds, so that quick commands stay quiet."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from compeft_client.packing.part_codec import Progress as Tick

PATIENCE_S = 2.0


@contextmanager
def watched(what: str, total: int) -> Iterator[Tick]:
    """A function to tell how many of `total` parameters have just been done. Nothing shows where standard error is not a terminal."""
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(what, total=total)
    began = time.monotonic()

    def tick(done: int) -> None:
        if console.is_terminal and not bar.live.is_started and time.monotonic() - began > PATIENCE_S:
            bar.start()
        bar.advance(task, done)

    try:
        yield tick
    finally:
        if bar.live.is_started:
            bar.stop()
