"""Who gets to see the live page, over real HTTP and HTTPS."""

import ssl
import stat
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import trustme

from compeft_core.errors import FormatError, InputError
from compeft_proto.errors import ForbiddenError
from compeft_server.dashboard.security import FAILURES, PASSWORD_FILE, Gate, read_password, safe_next, set_password
from compeft_server.dashboard.server import ListenAddress, check_listen_address
from compeft_server.data_directory import open_ledger
from tests.server.dashboard.conftest import Served

SECRET = "correct horse battery"
HTML = {"accept": "text/html"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    open_ledger(tmp_path / "data").close()
    return tmp_path / "data"


@pytest.fixture
def locked(data: Path, serving: Callable[..., Served]) -> Served:
    set_password(data, SECRET)
    return serving(data)


def enter(client: httpx.Client, site: Served, password: str, **headers: str) -> httpx.Response:
    return client.post(
        site.url + "/login", data={"password": password, "next": "/rounds"}, headers={"origin": site.url} | headers
    )


# The password


def test_a_password_is_kept_hashed_and_for_its_owner_only(data: Path) -> None:
    path = set_password(data, SECRET)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SECRET not in path.read_text()
    password = read_password(data)
    assert password is not None
    assert password.fits(SECRET)
    assert not password.fits(SECRET + "!")


def test_a_short_password_is_refused(data: Path) -> None:
    with pytest.raises(InputError, match="at least 12"):
        set_password(data, "short")
    assert read_password(data) is None


def test_a_password_that_others_can_read_is_not_used(data: Path) -> None:
    set_password(data, SECRET).chmod(0o644)
    with pytest.raises(ForbiddenError, match="chmod 600"):
        read_password(data)


@pytest.mark.parametrize("text", ["", "scrypt", "scrypt-1-1-1 00 00", "plain 00 zz"])
def test_a_password_file_of_another_kind_is_not_used(data: Path, text: str) -> None:
    path = data / PASSWORD_FILE
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(FormatError, match="dashboard-password"):
        read_password(data)


# Where it may listen


def test_beyond_loopback_it_takes_a_password_and_tls_or_a_proxy(data: Path) -> None:
    set_password(data, SECRET)
    password, here = read_password(data), Path("x.pem")
    with pytest.raises(InputError, match="needs a password"):
        check_listen_address(ListenAddress("0.0.0.0", behind_proxy=True), None)
    with pytest.raises(InputError, match="needs a password"):
        check_listen_address(ListenAddress("127.0.0.1", behind_proxy=True), None)
    with pytest.raises(InputError, match="plain HTTP"):
        check_listen_address(ListenAddress("0.0.0.0"), password)
    with pytest.raises(InputError, match="both"):
        check_listen_address(ListenAddress("0.0.0.0", certificate=here), password)
    check_listen_address(ListenAddress("0.0.0.0", behind_proxy=True), password)
    check_listen_address(ListenAddress("::", certificate=here, key=here), password)
    check_listen_address(ListenAddress(), None)


def test_without_a_password_only_the_names_of_this_machine_are_answered(data: Path, serving: Callable[..., Served]) -> None:
    site = serving(data)
    assert httpx.get(site.url).status_code == 200
    assert httpx.get(site.url, headers={"host": "attacker.example"}).status_code == 421


# Logging in


@pytest.mark.parametrize("path", ["/", "/rounds?page=2", "/clients", "/audit", "/expert?name=x"])
def test_every_page_asks_for_the_password_first(locked: Served, path: str) -> None:
    answer = httpx.get(locked.url + path, headers=HTML)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login?next=")


@pytest.mark.parametrize("path", ["/events", "/metrics"])
def test_programs_are_told_that_a_login_is_missing(locked: Served, path: str) -> None:
    assert httpx.get(locked.url + path).status_code == 401


def test_the_right_password_opens_and_logging_out_closes(locked: Served) -> None:
    with httpx.Client() as client:
        answer = enter(client, locked, SECRET)
        assert answer.status_code == 303
        assert answer.headers["location"] == "/rounds"
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert client.get(locked.url + "/rounds", headers=HTML).status_code == 200
        kept = dict(client.cookies)
        client.post(locked.url + "/logout", headers={"origin": locked.url})
    assert httpx.get(locked.url + "/rounds", headers=HTML, cookies=kept).status_code == 303


def test_a_wrong_password_opens_nothing_and_guessing_is_slowed(locked: Served) -> None:
    with httpx.Client() as client:
        answers = [enter(client, locked, f"wrong password {n}").status_code for n in range(FAILURES)]
        assert answers == [401] * FAILURES
        assert enter(client, locked, SECRET).status_code == 429
        assert client.get(locked.url, headers=HTML).status_code == 303


def test_guessing_is_heard_again_after_a_minute_and_sessions_end(data: Path) -> None:
    set_password(data, SECRET)
    now = [0.0]
    gate = Gate(read_password(data), secure=False, clock=lambda: now[0])
    assert [gate.enter("wrong") for _ in range(FAILURES)] == [None] * FAILURES
    assert gate.waits
    now[0] = 61.0
    assert not gate.waits
    assert gate.enter(SECRET)


@pytest.mark.parametrize("headers", [{"origin": "https://attacker.example"}, {"sec-fetch-site": "cross-site"}, {"origin": ""}])
def test_a_login_from_another_site_is_refused(locked: Served, headers: dict[str, str]) -> None:
    with httpx.Client() as client:
        assert enter(client, locked, SECRET, **headers).status_code == 403


@pytest.mark.parametrize(
    "target", ["https://attacker.example", "//attacker.example", "/\\attacker.example", "javascript:1", "/a\nb"]
)
def test_a_login_leads_to_no_other_host(target: str) -> None:
    assert safe_next(target) == "/"
    assert safe_next("/rounds?page=2") == "/rounds?page=2"


def test_a_scraper_shows_the_password_as_its_token(locked: Served) -> None:
    assert httpx.get(locked.url + "/metrics", headers={"authorization": f"Bearer {SECRET}"}).status_code == 200
    assert httpx.get(locked.url + "/metrics", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert httpx.get(locked.url + "/audit", headers={"authorization": f"Bearer {SECRET}"}).status_code == 401


# What every answer says


@pytest.mark.parametrize("path", ["/login", "/static/page.css", "/nothing", "/audit"])
def test_every_answer_has_the_security_headers(locked: Served, path: str) -> None:
    headers = httpx.get(locked.url + path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


def test_over_tls_the_cookie_goes_no_other_way(data: Path, tmp_path: Path, serving: Callable[..., Served]) -> None:
    set_password(data, SECRET)
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "c.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "k.pem"))
    site = serving(data, ListenAddress(certificate=tmp_path / "c.pem", key=tmp_path / "k.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with httpx.Client(verify=context) as client:
        answer = enter(client, site, SECRET)
        assert answer.headers["set-cookie"].startswith("__Host-compeft=")
        assert "Secure" in answer.headers["set-cookie"]
        assert client.get(site.url, headers=HTML).status_code == 200
