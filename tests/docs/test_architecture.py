"""docs/architecture.md names rooms that exist, and every folder of the product."""

import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

TEXT = (ROOT / "docs" / "architecture.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
PACKAGES = ("compeft_core", "proto/compeft_proto", "server/compeft_server", "client/compeft_client")
FOLDERS = sorted(
    folder
    for package in PACKAGES
    for folder in (ROOT / package).iterdir()
    if (folder / "__init__.py").exists() and folder.name != "v1"
)
MOST_MODULES = 14
EXAMPLE = "server/compeft_server/ledger/migrations/versions/rNNNN_words.py"
NAMED = sorted(set(re.findall(r"`([\w./-]+(?:\.py|\.proto|/))`", TEXT)) - {EXAMPLE})


def places() -> list[Path]:
    """Where a path of the page may begin: the root, the packages, and their folders."""
    return [ROOT, ROOT / "client", ROOT / "server", ROOT / "proto", *(ROOT / package for package in PACKAGES), *FOLDERS]


@pytest.mark.parametrize("name", NAMED)
def test_a_file_or_folder_that_the_page_names_is_there(name: str) -> None:
    tail = name.removeprefix("proto/") if name.startswith("proto/") and "compeft" not in name else name
    found = [place / tail for place in places() if (place / tail).exists()]
    deeper = [path for package in PACKAGES for path in (ROOT / package).rglob(tail.rstrip("/").rsplit("/", 1)[-1])]
    assert found or deeper, name


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_every_folder_has_its_row(folder: Path) -> None:
    assert f"`{folder.name}/`" in TEXT or f"/{folder.name}/`" in TEXT


@pytest.mark.parametrize("folder", [*FOLDERS], ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_a_folder_has_at_most_14_modules_and_a_caption(folder: Path) -> None:
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert folder.name == "cli" or len(modules) <= MOST_MODULES
    assert (folder / "__init__.py").read_text().startswith('"""')
