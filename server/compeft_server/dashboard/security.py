"""Who may see the live page: one operator's password, sessions, and what every answer says to the browser.

Without a password the page is for this machine alone, and only under its loopback names: a foreign name that resolves to loopback is
somebody else's page in the operator's browser. With one, everything but the login page, its style sheets and the health check needs it.
A request that changes something must come from the page itself. Nothing here reads the ledger.
"""

import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from compeft_core.errors import FormatError, InputError
from compeft_proto.errors import ForbiddenError, ThrottledError

PASSWORD_FILE = "dashboard.password"  # noqa: S105  # a file's name
MIN_PASSWORD = 12
SALT_BYTES, COST, BLOCK, LANES = 16, 2**14, 8, 1
"""scrypt: 16 MiB and some tens of milliseconds for one guess."""
SESSION_S = 12 * 3600
MAX_SESSIONS = 256
FAILURES, PER_S = 5, 60.0
"""Wrong passwords that are heard within this many seconds, from all addresses together: behind a proxy they look alike."""
LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
OPEN_PATHS = ("/login", "/static/", "/health")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Password:
    """A password as it is kept: salted and hashed by scrypt."""

    salt: bytes
    digest: bytes

    def fits(self, guess: str) -> bool:
        """Whether this is it. Takes as long for a right guess as for a wrong one."""
        return hmac.compare_digest(_digest(guess, self.salt), self.digest)


def set_password(data: Path, password: str) -> Path:
    """Keep a password for the page over this data directory, hashed, readable by its owner only. Errors: InputError."""
    if len(password) < MIN_PASSWORD:
        raise InputError(f"a password of {len(password)} characters, it must have at least {MIN_PASSWORD}")
    salt = secrets.token_bytes(SALT_BYTES)
    data.mkdir(parents=True, exist_ok=True)
    path, fresh = data / PASSWORD_FILE, data / f"{PASSWORD_FILE}.{os.getpid()}"
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"scrypt-{COST}-{BLOCK}-{LANES} {salt.hex()} {_digest(password, salt).hex()}\n")
    fresh.replace(path)
    return path


def read_password(data: Path) -> Password | None:
    """The password of this data directory, None if none was set. Errors: ForbiddenError if others can read it, FormatError."""
    path = data / PASSWORD_FILE
    if not path.exists():
        return None
    if path.stat().st_mode & 0o077:
        raise ForbiddenError(f"{path} can be read by others, mode {path.stat().st_mode & 0o777:o}: chmod 600 {path}")
    fields = path.read_text().split()
    try:
        kind, salt, digest = fields[0], bytes.fromhex(fields[1]), bytes.fromhex(fields[2])
    except (IndexError, ValueError) as error:
        raise FormatError(f"{path} is not a hashed password: set one with `compeft dashboard-password`") from error
    if kind != f"scrypt-{COST}-{BLOCK}-{LANES}":
        raise FormatError(f"{path} is hashed by {kind[:40]!a}: set the password again with `compeft dashboard-password`")
    return Password(salt, digest)


def _digest(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=COST, r=BLOCK, p=LANES, maxmem=2**26)


class Gate:
    """Decides about requests. `secure`: the browser reaches it by HTTPS, so its cookie may go no other way."""

    def __init__(self, password: Password | None, secure: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._password, self._secure, self._clock = password, secure, clock
        self._sessions: dict[bytes, float] = {}
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._lock = threading.Lock()
        self.cookie = "__Host-compeft" if secure else "compeft"

    @property
    def locked(self) -> bool:
        """Whether a password is asked for at all."""
        return self._password is not None

    def refuses(self, request: Request) -> Response | None:
        """The answer to a request that may not go on; None if it may."""
        if not self.locked and _host_of(request) not in LOOPBACK_NAMES:
            return PlainTextResponse("This page has no password, so it answers to the names of this machine only.", 421)
        if request.method not in ("GET", "HEAD") and not _from_here(request):
            return PlainTextResponse("This request came from another site.", 403)
        if not self.locked or request.url.path.startswith(OPEN_PATHS) or self._known(request):
            return None
        return _to_login(request)

    def enter(self, guess: str) -> str | None:
        """A session for the right password, None for a wrong one. Errors: ThrottledError if there were too many wrong ones just now."""
        return self._open(secrets.token_urlsafe(32)) if self._right(guess) else None

    @property
    def waits(self) -> bool:
        """Whether there were too many wrong passwords just now."""
        return len(self._failures) == FAILURES and self._clock() - self._failures[0] < PER_S

    def leave(self, request: Request) -> None:
        """End the session of a request."""
        self._sessions.pop(_key(request.cookies.get(self.cookie, "")), None)

    def keep(self, response: Response, token: str) -> None:
        """Give the browser its session."""
        response.set_cookie(
            self.cookie, token, max_age=SESSION_S, path="/", secure=self._secure, httponly=True, samesite="strict"
        )

    def _known(self, request: Request) -> bool:
        if self._lasts(request.cookies.get(self.cookie, "")):
            return True
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        return request.url.path == "/metrics" and kind.lower() == "bearer" and self._bears(token)

    def _bears(self, token: str) -> bool:
        """Whether a scraper's token is the password; a right one is remembered, so that it is not hashed at every scrape."""
        if self._lasts(f"bearer {token}"):
            return True
        try:
            if not token or not self._right(token):
                return False
        except ThrottledError:
            return False
        self._open(f"bearer {token}")
        return True

    def _right(self, guess: str) -> bool:
        """Whether this is the password. A guess counts as wrong while it is looked at, so guesses that come together are counted too."""
        with self._lock:
            if self.waits:
                raise ThrottledError("too many wrong passwords: wait a minute", int(PER_S * 1000))
            at = self._clock()
            self._failures.append(at)
        right = self._password is not None and self._password.fits(guess)
        if right:
            with self._lock, suppress(ValueError):
                self._failures.remove(at)
        return right

    def _open(self, token: str) -> str:
        while len(self._sessions) >= MAX_SESSIONS:
            self._sessions.pop(next(iter(self._sessions)))
        self._sessions[_key(token)] = self._clock() + SESSION_S
        return token

    def _lasts(self, token: str) -> bool:
        return self._sessions.get(_key(token), -1.0) > self._clock()


def safe_next(target: str) -> str:
    """Where to go after the login: a path of this page, never another host."""
    plain = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if plain else "/"


def _host_of(request: Request) -> str:
    """The host that a request names, without its port; empty unless it names exactly one."""
    named = request.headers.getlist("host")
    if len(named) != 1:
        return ""
    host = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?", named[0])
    return host[1].strip("[]").lower() if host else ""


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _from_here(request: Request) -> bool:
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return urlsplit(request.headers.get("origin", "")).netloc == request.headers.get("host", "-")


def _to_login(request: Request) -> Response:
    if request.headers.get("hx-request") == "true":
        return Response(status_code=401, headers={"HX-Redirect": "/login"})
    if "text/html" not in request.headers.get("accept", ""):
        return PlainTextResponse("Log in first.", 401, headers={"WWW-Authenticate": "Bearer"})
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/login?next={quote(here)}", 303)
