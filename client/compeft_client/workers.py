"""How long computations run: the number of threads, and the function that is told how far they are."""

import os
from collections.abc import Callable

WORKERS = min(8, os.cpu_count() or 1)
"""Threads that the work on one vector is spread over."""

Tell = Callable[[str], None]
"""Takes one short line that says how far a long computation is, such as "read 2 of 3 experts"."""


def untold(_: str) -> None:
    """A Tell that shows nothing."""
