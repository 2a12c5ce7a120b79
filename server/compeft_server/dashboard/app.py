"""The live page's routes: a request in, a rendered page out. What a page shows is pages.py; who may see it, security.py."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import structlog
from fastapi import FastAPI, Form, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compeft_proto.errors import ThrottledError, UnknownExpertError
from compeft_server.dashboard.charts.over_time import TimeRange
from compeft_server.dashboard.live import Pulse
from compeft_server.dashboard.pages import Pages
from compeft_server.dashboard.security import HEADERS, Gate, safe_next
from compeft_server.dashboard.site import Site
from compeft_server.ledger.database import LedgerError
from compeft_server.reports.formats.html import TEMPLATES

log = structlog.get_logger()
STATIC = Path(__file__).parent / "static"
Page = Annotated[int, Query(ge=1, le=1_000_000)]
Word = Annotated[str, Query(max_length=256)]
Number = Annotated[int, Query(ge=0, le=2**31 - 1)]
READ = ["GET", "HEAD"]
"""Methods of every page: a probe that asks for the head alone gets the same status and headers. The server leaves the body out."""


def create_app(site: Site, stopping: Callable[[], bool]) -> ASGIApp:
    """The page as an ASGI application; `stopping` says that the server is about to end."""
    pages = Pages(site)
    pulse = Pulse(pages.summaries, stopping)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_pages(app, pages)
    _add_doors(app, pages, site.gate)
    _add_trouble(app, pages)
    app.add_api_route("/static/common.css", _common_style, methods=READ)
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.head("/events")
    def stream_head() -> Response:
        return Response(media_type="text/event-stream")

    @app.get("/events")
    async def events() -> Response:
        if pulse.full:
            return PlainTextResponse("Too many pages are open.", 503, headers={"Retry-After": "60"})
        return StreamingResponse(pulse.listen(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.api_route("/metrics", methods=READ)
    def metrics() -> Response:
        return Response(site.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.api_route("/health", methods=READ)
    def health() -> Response:
        pages.summaries.marks()
        return PlainTextResponse("ok")

    return _guarded(app, site.gate)


def _common_style() -> Response:
    """The style sheet that the live page shares with the report."""
    return FileResponse(TEMPLATES / "common.css", media_type="text/css")


def _add_pages(app: FastAPI, pages: Pages) -> None:
    @app.api_route("/", methods=READ)
    def overview(request: Request, range: Word = "all", axis: Word = "linear") -> Response:  # the fields' names
        return pages.overview(request, TimeRange(range, log=axis == "log"))

    @app.api_route("/experts", methods=READ)
    def experts(request: Request) -> Response:
        return pages.experts(request)

    @app.api_route("/expert", methods=READ)
    def expert(request: Request, name: Word, page: Page = 1) -> Response:
        return pages.expert(request, name, page)

    @app.api_route("/version", methods=READ)
    def version(request: Request, expert: Word, number: Number) -> Response:
        return pages.version(request, expert, number)

    @app.api_route("/rounds", methods=READ)
    def rounds(request: Request, expert: Word = "", state: Word = "", page: Page = 1) -> Response:
        return pages.rounds(request, expert, state, page)

    @app.api_route("/round", methods=READ)
    def one_round(request: Request, expert: Word, run: Word, number: Number, page: Page = 1) -> Response:
        return pages.round(request, (expert, run, number), page)

    @app.api_route("/clients", methods=READ)
    def clients(request: Request, name: Word = "", page: Page = 1) -> Response:
        return pages.clients(request, name, page)

    @app.api_route("/search", methods=READ)
    def search(request: Request, q: Word = "") -> Response:
        return pages.search(request, q)

    @app.api_route("/client", methods=READ)
    def client(request: Request, keyid: Word) -> Response:
        return pages.client(request, keyid)

    @app.api_route("/refused", methods=READ)
    def refused(request: Request, expert: Word = "", code: Word = "", page: Page = 1) -> Response:
        return pages.refused(request, expert, code, page)

    @app.api_route("/audit", methods=READ)
    def audit(request: Request, action: Word = "", subject: Word = "", page: Page = 1) -> Response:
        return pages.audit(request, action, subject, page)


def _add_doors(app: FastAPI, pages: Pages, gate: Gate) -> None:
    @app.api_route("/login", methods=READ)
    def login(request: Request, next: Word = "/") -> Response:  # the field's name
        return pages.render(request, "login", next=safe_next(next), wrong="")

    @app.post("/login")
    def enter(request: Request, password: Annotated[str, Form(max_length=1024)], next: Annotated[str, Form()] = "/") -> Response:
        try:
            token = gate.enter(password)
        except ThrottledError:
            return pages.render(request, "login", 429, next=safe_next(next), wrong="Too many wrong passwords: wait a minute.")
        if token is None:
            return pages.render(request, "login", 401, next=safe_next(next), wrong="That is not the password.")
        response = RedirectResponse(safe_next(next), 303)
        gate.keep(response, token)
        return response

    @app.post("/logout")
    def leave(request: Request) -> Response:
        gate.leave(request)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(gate.cookie, path="/")
        return response


def _add_trouble(app: FastAPI, pages: Pages) -> None:
    @app.exception_handler(UnknownExpertError)
    def unknown(request: Request, error: UnknownExpertError) -> Response:
        return pages.trouble(request, 404, "Not here", f"{error}.")

    @app.exception_handler(HTTPException)
    def missing(request: Request, error: HTTPException) -> Response:
        return pages.trouble(request, error.status_code, "Not here", "This page does not exist.")

    @app.exception_handler(RequestValidationError)
    def wrong(request: Request, error: RequestValidationError) -> Response:
        fields = ", ".join(sorted({str(e["loc"][-1]) for e in error.errors()}))
        return pages.trouble(request, 400, "This address is not right", f"The page does not understand: {fields}.")

    @app.exception_handler(Exception)
    def broken(request: Request, error: Exception) -> Response:
        log.error("page failed", path=request.url.path, error=repr(error))
        return pages.trouble(
            request, 500, "This page broke", "That is a fault of ComPEFT's own. The log of the live page says more."
        )

    @app.exception_handler(LedgerError)
    def unread(request: Request, error: LedgerError) -> Response:
        log.error("ledger cannot be read", error=str(error).splitlines()[0])
        words = "The ledger cannot be read at the moment. The aggregator's own log says more; this page tries again when you reload it."
        return pages.trouble(request, 503, "No figures now", words)


def _guarded(app: ASGIApp, gate: Gate) -> ASGIApp:
    """The application behind its gate, with the security headers on every answer."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        refused = await run_in_threadpool(gate.refuses, Request(scope))
        return await (refused or app)(scope, receive, _with_headers(send))

    return guarded


def _with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    extra = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *extra]
        await send(message)

    return sending
