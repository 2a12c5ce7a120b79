"""Draws docs/dashboard.png: the live page over the ledger of a real run, in Chromium. python -m benchmarks.dashboard_picture

The ledger is recorded_demo.sql.gz: `compeft demo` on two cores (four clients, four rounds, seed 0), then `compeft bench pool --report`
against the same aggregator. Nothing in it was changed; the page's clock stands a minute after its last entry. Needs Chromium.
"""

import gzip
import shutil
import sqlite3
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from compeft_server.dashboard.metrics import Registry
from compeft_server.dashboard.server import ListenAddress, Web
from compeft_server.data_directory import open_ledger
from compeft_server.domain.price import Price

HERE = Path(__file__).parent
RECORDED, KEY = HERE / "recorded_demo.sql.gz", HERE / "recorded_demo.pub"
PICTURE = HERE.parent / "docs" / "dashboard.png"
SIZE = {"width": 1280, "height": 1180}
MINUTE_MS = 60_000


def restored(folder: Path) -> Path:
    """A data directory with the recorded ledger and the aggregator's public key."""
    data = folder / "aggregator"
    data.mkdir(parents=True)
    with sqlite3.connect(data / "ledger.sqlite") as connection:
        connection.executescript(gzip.decompress(RECORDED.read_bytes()).decode())
    connection.close()
    shutil.copy(KEY, data / "aggregator.pub")
    return data


def last_ms(data: Path) -> int:
    """When the newest transfer of the ledger began, in ms since 1970."""
    with sqlite3.connect(data / "ledger.sqlite") as connection:
        (found,) = connection.execute("SELECT max(at_ms) FROM transfers").fetchone()
    connection.close()
    return int(found)


def main() -> None:
    """Draw the picture."""
    with tempfile.TemporaryDirectory() as folder:
        data = restored(Path(folder))
        now = last_ms(data) + MINUTE_MS
        ledger = open_ledger(data)
        web = Web(data, ledger, ListenAddress(), Price(0.08, "EUR"), Registry(data, ledger), lambda: now)
        with web.beside() as port, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport=SIZE, timezone_id="UTC", locale="en-GB")  # type: ignore[arg-type]  # width and height
            page.clock.set_fixed_time(now)
            page.goto(f"http://localhost:{port}/")
            page.wait_for_selector("#time-chart canvas")
            page.screenshot(path=PICTURE)
            browser.close()
        ledger.close()
    print(PICTURE)


if __name__ == "__main__":
    main()
