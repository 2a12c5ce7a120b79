"""The picture of one round as geometry: a row a client, with what it fetched, trained and sent, on one time axis.

It knows neither ledger nor template. The axis begins where the round was opened, or at the first call if that was before, and ends with the
last call or the closing of the round.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from compeft_server.domain.records import Round
from compeft_server.ledger.lookups.round_steps import CallTimes, ClientSteps
from compeft_server.reports.formats.chart import Tick
from compeft_server.reports.formats.text import human_seconds

ROW = 22.0
BAR = 12.0
TOP = 26.0
BOTTOM = 26.0
TICKS = 5


@dataclass(frozen=True, slots=True)
class Width:
    """A drawing's width and the room for names at its left, in drawing units; `letters` of a name that fit there."""

    name: str
    width: float
    left: float
    letters: int
    right: float = 14.0


WIDE_ROWS = Width("wide", 960, 170, 20)
NARROW_ROWS = Width("narrow", 380, 96, 11)


@dataclass(frozen=True, slots=True)
class Piece:
    """One bar: fetched, trained, sent or delivered."""

    kind: str
    x: float
    y: float
    width: float
    words: str


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Everything that the template draws. marks: opened, deadline and closed, where they lie on the axis."""

    frame: Width
    height: float
    names: tuple[Tick, ...]
    pieces: tuple[Piece, ...]
    ticks: tuple[Tick, ...]
    marks: tuple[Tick, ...]


def draw_waterfall(found: Round, steps: Sequence[ClientSteps], frame: Width) -> Waterfall | None:
    """The picture of these clients' calls; None if no call was recorded."""
    spans = [span for step in steps for span in (step.fetched, step.sent, step.delivered) if span is not None]
    if not spans:
        return None
    first = min([found.opened_at_ms, *(s.start_ms for s in spans)])
    accepted = [step.accepted_at_ms for step in steps if step.accepted_at_ms is not None]
    last = max([found.closed_at_ms or 0, first + 1, *accepted, *(s.end_ms for s in spans)])

    def x(at_ms: float) -> float:
        return frame.left + (frame.width - frame.left - frame.right) * (at_ms - first) / (last - first)

    def piece(kind: str, row: int, start_ms: int, end_ms: int, words: str) -> Piece:
        return Piece(kind, x(start_ms), TOP + ROW * row + (ROW - BAR) / 2, max(1.5, x(end_ms) - x(start_ms)), words)

    pieces = []
    for row, step in enumerate(steps):
        if step.trained_s is not None and step.fetched is not None and step.sent is not None:
            words = f"{human_seconds(step.trained_s)} between fetch and upload"
            pieces.append(piece("trained", row, step.fetched.end_ms, step.sent.start_ms, words))
        for kind, span in (("fetched", step.fetched), ("sent", step.sent), ("delivered", step.delivered)):
            if span is not None:
                pieces.append(piece(kind, row, span.start_ms, span.end_ms, f"{kind} in {human_seconds(_seconds(span))}"))
        if step.sent is None and step.accepted_at_ms is not None:
            pieces.append(piece("sent", row, step.accepted_at_ms, step.accepted_at_ms, "accepted; sent for an earlier round"))
    places = [first + (last - first) * i / (TICKS - 1) for i in range(TICKS)]
    marks = {"opened": found.opened_at_ms, "deadline": found.deadline_ms, "closed": found.closed_at_ms}
    return Waterfall(
        frame=frame,
        height=TOP + ROW * len(steps) + BOTTOM,
        names=tuple(Tick(TOP + ROW * (row + 0.5), _short(step.name, frame.letters)) for row, step in enumerate(steps)),
        pieces=tuple(pieces),
        ticks=tuple(Tick(x(at), f"+{human_seconds((at - first) / 1000)}" if at > first else "0") for at in places),
        marks=tuple(Tick(x(at), name) for name, at in marks.items() if at is not None and first <= at <= last),
    )


def _seconds(span: CallTimes) -> float:
    return (span.end_ms - span.start_ms) / 1000


def _short(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"
