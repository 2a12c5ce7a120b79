"""A live page on a real port over a real ledger, and a real headless Chromium."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from compeft_proto.clock import now_ms
from compeft_server.dashboard.metrics import Registry
from compeft_server.dashboard.server import ListenAddress, Web
from compeft_server.data_directory import open_ledger
from compeft_server.domain.price import Price
from compeft_server.ledger.ledger import Ledger
from tests.server.dashboard.ledgers import Story, refuse, tell


@dataclass
class Served:
    """A page that is up."""

    url: str
    data: Path
    ledger: Ledger


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium; its tests are skipped where there is none, but never in continuous integration."""
    found = shutil.which("chromium")
    if found is None and os.environ.get("CI") != "true":
        pytest.skip("no chromium here: apt-get install chromium")
    assert found, "continuous integration needs chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def serving() -> Iterator[Callable[..., Served]]:
    """Serve the page over a data directory for the rest of the test."""
    with ExitStack() as stack:

        def serve(data: Path, address: ListenAddress = ListenAddress(), price: Price | None = None) -> Served:  # noqa: B008  # frozen
            ledger = stack.enter_context(closing(open_ledger(data)))
            web = Web(data, ledger, address, price, Registry(data, ledger))
            port = stack.enter_context(web.beside())
            return Served(f"{'https' if address.certificate else 'http'}://localhost:{port}", data, ledger)

        yield serve


@pytest.fixture
def told(tmp_path: Path, serving: Callable[..., Served]) -> Served:
    """A page over two experts, one of unknown quality, and some refusals."""
    now = now_ms()
    data = tmp_path / "data"
    ledger = tell(data, Story(now_ms=now), Story("topic/news", rounds=3, measured=False, now_ms=now))
    refuse(ledger, 60, now)
    refuse(ledger, 2, now, "replay")
    ledger.close()
    return serving(data, price=Price(0.08, "EUR"))
