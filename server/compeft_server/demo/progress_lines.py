"""Progress as lines of text, for output that is not a terminal, where a progress bar prints nothing until it ends."""

import time
from collections.abc import Callable

from rich.console import Console

QUIET_S = 30.0
"""A line is printed after this time even if no round has ended, so that a log shows that the run goes on."""


class ProgressLines:
    """Prints one line when a round has ended, and one after QUIET_S without any. On a terminal it prints nothing.

    name: what runs, such as "compressed". rounds: how many it has. clock: seconds that only grow.
    """

    def __init__(self, console: Console, name: str, rounds: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._name, self._rounds, self._clock = console, name, rounds, clock
        self._began = self._printed_at = clock()
        self._done = 0

    def tell(self, done: int, detail: str) -> None:
        """Take the number of rounds that have ended and a few words about the one that runs."""
        now = self._clock()
        if self._console.is_terminal or (done == self._done and now - self._printed_at < QUIET_S):
            return
        self._done, self._printed_at = done, now
        line = f"{self._name}: {done}/{self._rounds} rounds, {detail}, {now - self._began:.0f} s"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
