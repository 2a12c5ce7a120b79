"""What the page of one round shows: a row a client with its state in words, and the picture of its calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compeft_server.dashboard.charts.waterfall import NARROW_ROWS, WIDE_ROWS, Waterfall, draw_waterfall
from compeft_server.domain.records import Refusal, Round
from compeft_server.ledger.lookups.round_steps import ClientSteps, RoundSteps
from compeft_server.reports.figures.provenance import Contributor

PAGE_CLIENTS = 50


@dataclass(frozen=True, slots=True)
class ClientState:
    """One client of a round. words: what became of it; alarm: whether that is a fault."""

    step: ClientSteps
    words: str
    alarm: bool = False


@dataclass(frozen=True, slots=True)
class RoundView:
    """One page of a round. counts: state -> clients, over all pages."""

    round: Round
    clients: tuple[ClientState, ...]
    total: int
    counts: Mapping[str, int]
    wire_bytes: int
    waterfalls: tuple[Waterfall, ...]
    refusals: tuple[Refusal, ...]

    @property
    def kinds(self) -> set[str]:
        """Kinds of bars that are drawn."""
        return {piece.kind for waterfall in self.waterfalls for piece in waterfall.pieces}


def round_view(reader: RoundSteps, found: Round, contributors: Sequence[Contributor], now_ms: int, page: int) -> RoundView:
    """The clients of a round, 50 a page; `contributors` are of the version that closing it led to."""
    signed = {c.update_digest: c for c in contributors}
    states = [state_of(step, found, signed.get(step.update_digest), now_ms) for step in reader.steps(found)]
    counts: dict[str, int] = {}
    for state in states:
        kind = state.words.split(":")[0]
        counts[kind] = counts.get(kind, 0) + 1
    shown = states[(page - 1) * PAGE_CLIENTS : page * PAGE_CLIENTS]
    drawn = [draw_waterfall(found, [s.step for s in shown], frame) for frame in (WIDE_ROWS, NARROW_ROWS)]
    spans = [span for s in states for span in (s.step.fetched, s.step.sent, s.step.delivered) if span is not None]
    return RoundView(
        round=found,
        clients=tuple(shown),
        total=len(states),
        counts=counts,
        wire_bytes=sum(span.wire_bytes for span in spans),
        waterfalls=tuple(d for d in drawn if d is not None),
        refusals=tuple(reader.refusals(found)),
    )


def state_of(step: ClientSteps, found: Round, signed: Contributor | None, now_ms: int) -> ClientState:
    """What became of one client in a round; `signed` is its contribution as the version's manifest names it."""
    if step.accepted_at_ms is not None:
        return _of_sender(step, signed)
    if step.sent is not None:
        return ClientState(step, "not accepted: its upload was refused or cut off", alarm=True)
    if step.fetched is None:
        return ClientState(step, "fetched the new version only")
    if found.closed_at_ms is not None:
        return ClientState(step, "sent nothing before the round was closed", alarm=True)
    if found.deadline_ms < now_ms:
        return ClientState(step, "sent nothing before the deadline", alarm=True)
    return ClientState(step, "has fetched, nothing sent yet")


def _of_sender(step: ClientSteps, signed: Contributor | None) -> ClientState:
    if signed is not None and signed.left_out:
        return ClientState(step, "accepted: left out by the merge method")
    if signed is not None and signed.staleness:
        versions = "1 version" if signed.staleness == 1 else f"{signed.staleness} versions"
        return ClientState(step, f"late: merged, its base is {versions} older", alarm=True)
    return ClientState(step, "accepted" if step.merged_in is None else "merged")
