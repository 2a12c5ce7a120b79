"""The live page's pages: each reads what it shows and renders its template. No route, no arithmetic on bytes here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, Response

from compeft_proto.errors import UnknownExpertError
from compeft_proto.keys import PublicKey
from compeft_server.dashboard import figures
from compeft_server.dashboard.figures import Card
from compeft_server.dashboard.over_time import RANGES, TimeRange, over_time
from compeft_server.dashboard.security import Gate
from compeft_server.domain.kpi import KpiSeries
from compeft_server.domain.price import Price
from compeft_server.domain.traffic import why_row_silent
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.pages import PAGE, Listings
from compeft_server.ledger.totals import Moved, Summaries
from compeft_server.reports.figures.provenance import read_origin
from compeft_server.reports.formats import text
from compeft_server.reports.formats.chart import NARROW, WIDE, Curves, describe, draw, without_start
from compeft_server.reports.formats.html import TEMPLATES, environment
from compeft_server.reports.formats.kpi_chart import KpiChart, draw_kpi, human_value
from compeft_server.reports.formats.language import ENGLISH
from compeft_server.reports.formats.timeline import NARROW_PANELS, WIDE_PANELS, describe_timeline, draw_timeline

MENU = (
    ("/", "Overview"),
    ("/rounds", "Rounds"),
    ("/experts", "Experts"),
    ("/clients", "Clients"),
    ("/refused", "Refused"),
    ("/audit", "Audit"),
)


@dataclass(frozen=True, slots=True)
class Site:
    """What the pages are about and who may see them. `metrics` is the text for a scraper; `keys` the aggregator's, newest first."""

    ledger: Ledger
    keys: tuple[PublicKey, ...]
    gate: Gate
    price: Price | None
    metrics: Callable[[], bytes]
    now_ms: Callable[[], int]


class Pages:
    """Reads and renders. Every method is one page."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.summaries, self._listings = Summaries(site.ledger), Listings(site.ledger)
        self._templates = environment(TEMPLATES, Path(__file__).parent / "templates")
        self._templates.filters.update(
            iso=text.iso, money=text.human_money, percent=text.human_percent, twice=lambda value: (value, value)
        )

    def render(self, request: Request, name: str, status: int = 200, **values: object) -> HTMLResponse:
        """A template with what every page needs."""
        site = self._site
        shared: Mapping[str, object] = {
            "menu": MENU,
            "path": request.url.path,
            "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            "locked": site.gate.locked,
            "price": site.price,
            "now_ms": site.now_ms(),
            "page_rows": PAGE,
            "metric": text.human_metric,
            "stated_by": text.stated_by,
            "t": ENGLISH,
            "change": text.human_change,
            "page_url": lambda number: str(request.url.include_query_params(page=number).query),
        }
        page = self._templates.get_template(f"{name}.html.j2").render({**shared, **values})
        return HTMLResponse(page, status, headers={"Cache-Control": "no-store"})

    def cards(self) -> tuple[Card, ...]:
        """All experts."""
        return figures.read_cards(self.summaries, self._site.now_ms())

    def overview(self, request: Request, wanted: TimeRange) -> Response:
        """Bytes, time and money, with the quality beside them."""
        cards = self.cards()
        shown = over_time(self.summaries, cards, self._site.now_ms(), wanted)
        drawn = [draw_timeline(shown, frame, log=wanted.log) for frame in (WIDE_PANELS, NARROW_PANELS)] if shown else []
        return self.render(
            request,
            "overview",
            overview=figures.overview_of(cards),
            wanted=wanted,
            ranges=RANGES,
            log=wanted.log,
            timeline=shown,
            drawings=[d for d in drawn if d is not None],
            time_words=describe_timeline(shown) if shown else "",
        )

    def experts(self, request: Request) -> Response:
        """All experts in one table."""
        return self.render(request, "experts", cards=self.cards())

    def expert(self, request: Request, name: str, page: int) -> Response:
        """One expert: its picture and its log."""
        card = self._card(name)
        shown, total = self._listings.versions(name, page)
        numbers = [v.version for v in shown]
        metric = card.standing.metric if card.standing else ""
        return self.render(
            request,
            "expert",
            card=card,
            rows=[(v, read_origin(v.envelope, self._site.keys, self._names())) for v in shown],
            moved=self.summaries.moved_by_version(name, numbers),
            scores=self.summaries.scores(name, metric, "synced", numbers),
            nothing=Moved(),
            row_savings=figures.row_savings,
            total=total,
            page=page,
            kpis=self._kpis(name, [(v.version, v.created_at_ms) for v in reversed(shown)]),
            kpi_value=human_value,
            **self._picture(card),
        )

    def version(self, request: Request, name: str, number: int) -> Response:
        """One version and everybody who contributed to it."""
        card = self._card(name)
        shown, _ = self._listings.versions(name, 1, number)
        if not shown:
            raise UnknownExpertError(f"{name} has versions 0 to {card.expert.head}, not {number}")
        metric = card.standing.metric if card.standing else ""
        moved = self.summaries.moved_by_version(name, [number]).get(number, Moved())
        score = self.summaries.scores(name, metric, "synced", [number]).get(number)
        return self.render(
            request,
            "version",
            card=card,
            version=shown[0],
            origin=read_origin(shown[0].envelope, self._site.keys, self._names()),
            moved=moved,
            score=score,
            silence=why_row_silent(card.expert.kind, number, moved.up, moved.down, score is not None),
        )

    def rounds(self, request: Request, expert: str, state: str, page: int) -> Response:
        """Rounds, the open ones among them."""
        shown, total = self._listings.rounds(expert, state, page)
        metrics, moved, scores = self.summaries.metrics(), {}, {}
        for name in {r.round.expert for r in shown}:
            numbers = {_leads_to(r.round) for r in shown if r.round.expert == name}
            moved[name] = self.summaries.moved_by_version(name, numbers)
            scores[name] = self.summaries.scores(name, metrics.get(name, ""), "synced", numbers)
        return self.render(
            request,
            "rounds",
            rows=shown,
            total=total,
            page=page,
            chosen={"expert": expert, "state": state},
            experts=self._site.ledger.experts(),
            metrics=metrics,
            moved=moved,
            scores=scores,
            nothing=Moved(),
            leads_to=_leads_to,
            row_savings=figures.row_savings,
        )

    def clients(self, request: Request) -> Response:
        """Everybody enrolled."""
        scores: dict[str, list[tuple[str, str, int, float]]] = {}
        for (keyid, expert, metric), (version, value) in self.summaries.client_scores().items():
            scores.setdefault(keyid, []).append((expert, metric, version, value))
        return self.render(request, "clients", rows=self.summaries.clients(), scores=scores)

    def client(self, request: Request, keyid: str) -> Response:
        """One key of a member: when it was seen last, where it is behind, its rate, its certificate."""
        found = next((c for c in self.summaries.clients() if c.keyid == keyid), None)
        if found is None:
            raise UnknownExpertError(f"no member has the key {keyid[:40]!a}: choose one of the page Clients")
        heads = {e.name: e.head for e in self.summaries.experts()}
        scores = {e: (m, v, value) for (key, e, m), (v, value) in self.summaries.client_scores().items() if key == keyid}
        return self.render(
            request,
            "client",
            client=found,
            enrolled=next(e for e in self._site.ledger.membership.enrolled() if e.keyid == keyid),
            moved=self.summaries.moved_by_member(keyid),
            delivered=self.summaries.newest_delivered(keyid),
            heads=heads,
            scores=scores,
        )

    def refused(self, request: Request, expert: str, code: str, page: int) -> Response:
        """What was turned away, and why."""
        rows, total = self._listings.refusals(expert, code, page)
        codes, experts = self.summaries.refused_by_code(), self._site.ledger.experts()
        chosen = {"expert": expert, "code": code}
        return self.render(request, "refused", rows=rows, total=total, page=page, codes=codes, experts=experts, chosen=chosen)

    def audit(self, request: Request, action: str, subject: str, page: int) -> Response:
        """Every decision."""
        rows, total = self._listings.audit(action, subject, page)
        chosen, actions = {"action": action, "subject": subject}, self.summaries.actions()
        return self.render(request, "audit", rows=rows, total=total, page=page, actions=actions, chosen=chosen)

    def trouble(self, request: Request, status: int, title: str, words: str) -> Response:
        """A page that says what went wrong and what to do."""
        return self.render(request, "trouble", status, code=status, title=title, words=words)

    def _card(self, name: str) -> Card:
        found = figures.read_cards(self.summaries, self._site.now_ms(), name)
        if not found:
            raise UnknownExpertError(f"no expert {name[:40]!a} here: choose one of the overview")
        return found[0]

    def _kpis(self, name: str, versions: Sequence[tuple[int, int]]) -> list[tuple[KpiSeries, KpiChart]]:
        series = self._site.ledger.kpis.series(name)
        return [(s, chart) for s in series if (chart := draw_kpi(s, versions)) is not None]

    def _names(self) -> dict[str, str]:
        return {m.public.keyid: m.name for m in self._site.ledger.members()}

    def _picture(self, card: Card) -> dict[str, Any]:
        """The chart of an expert, empty where a saving would not be stated either."""
        if card.standing is None or card.silence:
            return {"charts": [], "curves": None, "description": ""}
        curve = self.summaries.wire_curve(card.expert.name, card.expert.head)
        scores = self.summaries.scores(card.expert.name, card.standing.metric, "synced", [number for number, _ in curve])
        synced = without_start(
            tuple((number, size, scores[number].mean) for number, size in curve if number in scores), card.expert.kind
        )
        base = card.standing.base.score.mean if card.standing.base else None
        curves = Curves(card.standing.metric, base, synced, ())
        charts = [chart for frame in (WIDE, NARROW) if (chart := draw(curves, frame)) is not None]
        return {"charts": charts, "curves": curves, "description": describe(curves)}


def _leads_to(found: Any) -> int:
    """The version that a round led to, or is to lead to."""
    return int(found.base_version + 1 if found.version is None else found.version)
