"""The live page in a real browser: nothing from outside, no errors, live, readable on a phone, by keyboard, in light and dark."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect

from compeft_proto.clock import now_ms
from compeft_server.dashboard.security import set_password
from compeft_server.domain.records import Quality, Refusal, Round
from tests.server.dashboard.conftest import Served
from tests.server.dashboard.ledgers import Story, tell
from tests.server.dashboard.test_pages import ALL

pytestmark = pytest.mark.browser
PHONE = {"width": 375, "height": 740}


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """A browser profile of its own, in Berlin."""
    context = chromium.new_context(timezone_id="Europe/Berlin", locale="en-GB")
    context.set_default_timeout(10_000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page that fails the test if anything is written to its console, or it asks another host for something."""
    page, trouble = context.new_page(), []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: trouble.append(request.url) if "//localhost:" not in request.url else None)
    yield page
    assert trouble == []


def open_live(page: Page, site: Served, path: str) -> None:
    """Open a page and wait until its live connection is up."""
    page.goto(site.url + path)
    expect(page.locator("#link-state")).to_have_text("Live")


def test_every_page_opens_live_without_an_error_or_a_request_to_another_host(told: Served, page: Page) -> None:
    for path in ALL:
        open_live(page, told, path)
        assert page.locator("h1").count() == 1


def test_times_are_shown_in_the_viewers_zone(told: Served, page: Page) -> None:
    open_live(page, told, "/rounds")
    shown = page.locator("#rounds-scroll time").first
    local, utc = re.findall(r"(\d\d):(\d\d)", shown.get_attribute("title") or "")
    assert (int(local[0]) - int(utc[0])) % 24 in (1, 2)
    assert local[1] == utc[1]
    assert "ago" in (shown.text_content() or "") or "in " in (shown.text_content() or "")
    expect(page.locator("#zone")).to_contain_text("Europe/Berlin")


def test_what_happens_appears_by_itself(told: Served, page: Page) -> None:
    open_live(page, told, "/rounds")
    expect(page.locator("#live")).to_contain_text("17 rounds")
    told.ledger.open_round(Round("sentiment", "run-2", 1, b"n" * 16, 12, now_ms() + 60_000, now_ms()))
    expect(page.locator("#live")).to_contain_text("18 rounds")
    expect(page.locator("#rounds-scroll tbody tr").first).to_contain_text("run-2")
    told.ledger.record_quality(Quality(now_ms(), "sentiment", "run-2", 1, 12, "synced", "", "accuracy", 0.99, 10))
    page.goto(told.url + "/refused")
    expect(page.locator("#live")).to_contain_text("62 refused")
    told.ledger.record_refusal(Refusal(now_ms(), "ipv4:192.0.2.9:1", "sentiment", 1, "expired", "issued 9 s ago and expired"))
    expect(page.locator("#live")).to_contain_text("63 refused")


def test_filters_work_without_a_reload_and_are_in_the_address(told: Served, page: Page) -> None:
    open_live(page, told, "/rounds")
    page.evaluate("window.stayed = true")
    page.get_by_label("State").select_option("open")
    expect(page.locator("#live")).to_contain_text("2 rounds")
    page.get_by_role("combobox", name="Expert").select_option("topic/news")
    expect(page.locator("#live")).to_contain_text("1 round")
    assert page.evaluate("window.stayed")
    assert "state=open" in page.url
    page.reload()
    expect(page.locator("#live")).to_contain_text("1 round")
    assert page.get_by_label("State").input_value() == "open"


def test_a_filter_stays_while_news_arrive(told: Served, page: Page) -> None:
    open_live(page, told, "/audit")
    page.get_by_label("Action").select_option("enrol")
    expect(page.locator("#live")).to_contain_text("5 entries")
    told.ledger.enrol("late", told.ledger.members()[0].public.__class__(b"\x07" * 32), "edge", now_ms())
    expect(page.locator("#live")).to_contain_text("6 entries")


def test_filters_and_pages_work_without_scripts(told: Served, chromium: Browser) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(told.url + "/refused")
    page.get_by_role("combobox", name="Code").select_option("replay")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#live")).to_contain_text("2 refused")
    page.goto(told.url + "/refused")
    page.get_by_role("link", name="Older").click()
    expect(page.locator("#live")).to_contain_text("page 2 of 2")
    context.close()


def test_no_page_scrolls_sideways_on_a_phone(told: Served, page: Page) -> None:
    page.set_viewport_size(PHONE)
    for path in (*ALL, "/login"):
        page.goto(told.url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path


def test_a_long_name_does_not_widen_the_overview(tmp_path: Path, serving: Callable[..., Served], page: Page) -> None:
    tell(tmp_path / "data", Story("team/" + "x" * 100, rounds=2, measured=False)).close()
    page.set_viewport_size(PHONE)
    page.goto(serving(tmp_path / "data").url)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_everything_is_reached_by_keyboard(told: Served, page: Page) -> None:
    open_live(page, told, "/rounds")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.id || document.activeElement.type"))
    assert reached == ["expert", "state", "submit", "rounds-scroll"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(told: Served, context: BrowserContext, page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    for path in (*ALL, "/expert?name=topic/news", "/login"):
        page.goto(told.url + path)
        found = Axe().run(page).response["violations"]
        serious = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
        assert serious == [], path


def test_the_login_leads_back_to_where_one_wanted_to_go(
    tmp_path: Path, serving: Callable[..., Served], context: BrowserContext
) -> None:
    tell(tmp_path / "data", Story(rounds=1)).close()
    set_password(tmp_path / "data", "correct horse battery")
    site = serving(tmp_path / "data")
    page = context.new_page()
    page.goto(site.url + "/rounds?state=closed")
    page.get_by_label("password").fill("correct horse stapler")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("That is not the password.")
    page.get_by_label("password").fill("correct horse battery")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#live")).to_contain_text("1 round")
    assert page.url.endswith("/rounds?state=closed")
    expect(page.locator("#link-state")).to_have_text("Live")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()


def test_the_overviews_picture_is_drawn_from_its_tables_with_zoom_and_hover(told: Served, page: Page) -> None:
    open_live(page, told, "/")
    expect(page.locator("#time-chart canvas")).to_have_count(2)
    expect(page.locator("figure.timeline")).to_be_hidden()
    rows = page.locator("table[data-chart=bytes] tbody tr")
    moved = page.evaluate(
        "[...document.querySelectorAll('table[data-chart=bytes] td')].reduce((s, c) => s + Number(c.dataset.value), 0)"
    )
    wire = 4 * (12 * (700 + 1200) + 12 * (1900 + 1400) + 1400)
    assert moved == wire + 100 * 2 * 16_000
    plot = page.locator("#time-chart .u-over").first
    box = plot.bounding_box()
    assert box
    plot.hover(position={"x": box["width"] - 8, "y": 40})
    expect(page.locator("#time-chart .u-legend").first).to_contain_text("256 kB")
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 40, steps=5)
    page.mouse.up()
    assert page.evaluate("zoom[1] - zoom[0]") < 0.5 * page.evaluate("drawn[0].data[0].at(-1) - drawn[0].data[0][0]")
    page.locator("#time-chart .u-over").first.dblclick()
    assert page.evaluate("zoom") is None
    assert rows.count() >= 12


def test_the_overviews_picture_needs_no_script(told: Served, chromium: Browser) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(told.url + "/")
    expect(page.locator("figure.timeline svg.wide")).to_be_visible()
    expect(page.locator("#time-chart")).to_be_hidden()
    page.locator("#time-tables summary").click()
    expect(page.locator("table[data-chart=bytes]")).to_be_visible()
    context.close()


def test_nothing_shifts_while_a_page_loads(told: Served, context: BrowserContext) -> None:
    page = context.new_page()
    page.add_init_script(
        "window.shift = 0; new PerformanceObserver(l => { for (const e of l.getEntries()) window.shift += e.value; })"
        ".observe({type: 'layout-shift', buffered: true});"
    )
    for path in ALL:
        page.goto(told.url + path)
        expect(page.locator("#link-state")).to_have_text("Live")
        assert page.evaluate("window.shift") < 0.1, path
