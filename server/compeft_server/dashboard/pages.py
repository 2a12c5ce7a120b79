"""The live page's pages: each reads what it shows and renders its template. No route, no arithmetic on bytes here."""

from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from compeft_proto.errors import UnknownExpertError
from compeft_server.dashboard import figures
from compeft_server.dashboard.attention import MAX_SHOWN, alerts
from compeft_server.dashboard.charts.over_time import RANGES, TimeRange, over_time
from compeft_server.dashboard.charts.sparklines import sparklines
from compeft_server.dashboard.figures import Card
from compeft_server.dashboard.operator_pages import OperatorPages
from compeft_server.dashboard.round_page import PAGE_CLIENTS, round_view
from compeft_server.domain.kpi import KpiSeries
from compeft_server.domain.traffic import why_row_silent
from compeft_server.ledger.lookups.moved import Moved
from compeft_server.ledger.lookups.pages import VersionSummary
from compeft_server.ledger.lookups.round_steps import RoundSteps
from compeft_server.reports.figures.provenance import read_origin
from compeft_server.reports.figures.report import Publication
from compeft_server.reports.formats.chart import NARROW, WIDE, Curves, describe, draw, without_start
from compeft_server.reports.formats.kpi_chart import KpiChart, draw_kpi, human_value
from compeft_server.reports.formats.text import human_cost
from compeft_server.reports.formats.timeline import NARROW_PANELS, WIDE_PANELS, describe_timeline, draw_timeline


class Pages(OperatorPages):
    """Reads and renders. Every method is one page."""

    def cards(self) -> tuple[Card, ...]:
        """All experts."""
        return self._kept.get("cards", lambda: figures.read_cards(self.summaries, self._site.now_ms()))

    def overview(self, request: Request, wanted: TimeRange) -> Response:
        """Bytes, time and money, with the quality beside them."""
        cards = self.cards()
        now = self._site.now_ms()
        shown = self._kept.get(("timeline", wanted.name), lambda: over_time(self.summaries, cards, now, wanted))
        drawn = [draw_timeline(shown, frame, log=wanted.log) for frame in (WIDE_PANELS, NARROW_PANELS)] if shown else []
        return self.render(
            request,
            "overview",
            overview=figures.overview_of(cards),
            cost=human_cost,
            rounds=sum(closed for _, closed in self.summaries.round_counts().values()),
            alerts=self._kept.get("alerts", lambda: alerts(self._site.ledger, cards, now)),
            max_alerts=MAX_SHOWN,
            sparklines=self._kept.get("sparklines", lambda: sparklines(self.summaries, cards, now)),
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
        metric, moved = card.standing.metric if card.standing else "", self.summaries.moved_by_version(name, numbers)
        return self.render(
            request,
            "expert",
            card=card,
            rows=[(v, read_origin(v.envelope, self._site.keys, self._names())) for v in shown],
            moved=moved,
            scores=self.summaries.scores(name, metric, "synced", numbers),
            nothing=Moved(),
            row_savings=figures.row_savings,
            total=total,
            page=page,
            kpis=self._kpis(name, [_published(v, moved.get(v.version, Moved())) for v in reversed(shown)]),
            kpi_value=human_value,
            **self._kept.get(("picture", name), lambda: self._picture(card)),
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

    def round(self, request: Request, place: tuple[str, str, int], page: int) -> Response:
        """One round (expert, run, number): who fetched, trained, sent, and when."""
        expert, run, number = place
        found = self._site.ledger.round(expert, run, number)
        if found is None:
            raise UnknownExpertError(f"{expert[:40]!a} has no round {number} of run {run[:40]!a}: choose one of the page Rounds")
        led = _leads_to(found)
        shown, _ = self._listings.versions(expert, 1, led) if found.version is not None else ([], 0)
        origin = read_origin(shown[0].envelope, self._site.keys, self._names()) if shown else None
        contributors = origin.contributors if origin and found.version != found.base_version else ()
        metric = self.summaries.metrics().get(expert, "")
        return self.render(
            request,
            "round",
            view=round_view(RoundSteps(self._site.ledger), found, contributors, self._site.now_ms(), page),
            page=page,
            page_rows=PAGE_CLIENTS,
            metric_name=metric,
            merge_seconds=shown[0].merge_seconds if shown and contributors else None,
            score=self.summaries.scores(expert, metric, "synced", [led]).get(led),
        )

    def _card(self, name: str) -> Card:
        now = self._site.now_ms()
        found = self._kept.get(("card", name), lambda: figures.read_cards(self.summaries, now, name))
        if not found:
            raise UnknownExpertError(f"no expert {name[:40]!a} here: choose one of the overview")
        return found[0]

    def _kpis(self, name: str, versions: Sequence[Publication]) -> list[tuple[KpiSeries, KpiChart]]:
        series = self._site.ledger.kpis.series(name)
        return [(s, chart) for s in series if (chart := draw_kpi(s, versions)) is not None]

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


def _published(version: VersionSummary, moved: Moved) -> Publication:
    return Publication(version.version, version.created_at_ms, moved.both.wire_bytes, moved.both.dense_bf16_bytes)


def _leads_to(found: Any) -> int:
    """The version that a round led to, or is to lead to."""
    return int(found.base_version + 1 if found.version is None else found.version)
