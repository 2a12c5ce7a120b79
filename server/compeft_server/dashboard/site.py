"""What the live page is about, and how a template of it is rendered: the base of its pages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from fastapi.responses import HTMLResponse, Response

from compeft_proto.keys import PublicKey
from compeft_server.dashboard.kept import KeptFigures
from compeft_server.dashboard.security import Gate
from compeft_server.domain.price import Price
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.lookups.pages import PAGE, Listings
from compeft_server.ledger.lookups.totals import Summaries
from compeft_server.reports.formats import text
from compeft_server.reports.formats.html import TEMPLATES, environment
from compeft_server.reports.formats.language import ENGLISH

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


class Renderer:
    """Renders templates with what every page needs."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.summaries, self._listings = Summaries(site.ledger), Listings(site.ledger)
        self._kept = KeptFigures(self.summaries, site.now_ms)
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

    def trouble(self, request: Request, status: int, title: str, words: str) -> Response:
        """A page that says what went wrong and what to do."""
        return self.render(request, "trouble", status, code=status, title=title, words=words)

    def _names(self) -> dict[str, str]:
        return {m.public.keyid: m.name for m in self._site.ledger.members()}
