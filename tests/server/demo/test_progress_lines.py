"""Output that is not a terminal gets a line a round, and one now and then while a round lasts."""

import io

from rich.console import Console

from compeft_server.demo.progress_lines import QUIET_S, ProgressLines


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def told(terminal: bool) -> tuple[ProgressLines, Clock, io.StringIO]:
    out, clock = io.StringIO(), Clock()
    return ProgressLines(Console(file=out, force_terminal=terminal, width=40), "compressed", 4, clock), clock, out


def test_a_round_that_ended_is_one_line_and_looks_between_print_nothing() -> None:
    lines, clock, out = told(terminal=False)
    for done in (0, 0, 1, 1, 1, 2):
        clock.now += 1
        lines.tell(done, "3/4 clients, 812 kB on the wire")
    assert out.getvalue().splitlines() == [
        "compressed: 1/4 rounds, 3/4 clients, 812 kB on the wire, 3 s",
        "compressed: 2/4 rounds, 3/4 clients, 812 kB on the wire, 6 s",
    ]


def test_a_long_round_gets_a_line_each_half_minute() -> None:
    lines, clock, out = told(terminal=False)
    for _ in range(7):
        clock.now += QUIET_S / 2
        lines.tell(0, "[waiting]")
    assert out.getvalue().splitlines() == [f"compressed: 0/4 rounds, [waiting], {s} s" for s in (30, 60, 90)]


def test_a_terminal_has_its_bar_and_no_lines() -> None:
    lines, clock, out = told(terminal=True)
    clock.now += 2 * QUIET_S
    lines.tell(1, "")
    assert out.getvalue() == ""
