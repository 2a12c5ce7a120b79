"""Every command in README.md, CONTRIBUTING.md and docs/ is run by a test, or its block says that it is not run and its options exist."""

import re
from pathlib import Path

import pytest

from tests.deploy.test_images import check
from tests.docs.blocks import NOT_RUN, PAGES, PROGRAMS, ROOT, RUN, Block, blocks_of

RUNNERS = {
    "README.md": "tests/docs/test_pages.py",
    "docs/choosing-compression.md": "tests/docs/test_pages.py",
    "docs/dashboard.md": "tests/docs/test_pages.py",
    "docs/merging.md": "tests/docs/test_pages.py",
    "docs/policy.md": "tests/docs/test_pages.py",
    "docs/storage.md": "tests/docs/test_pages.py",
    "docs/existing-flower-app.md": "tests/e2e/test_existing_app.py",
    "docs/fine-tune-a-language-model.md": "tests/e2e/test_language_model.py",
    "docs/operations.md": "tests/deploy/test_operations.py",
}
"""Page -> the test file that runs its blocks marked `bash run`, from top to bottom."""
BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def name_of(block: Block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.has_commands], ids=name_of)
def test_a_block_of_commands_says_whether_a_test_runs_it(block: Block) -> None:
    assert block.info in (RUN, NOT_RUN), f"write ```{RUN} or ```{NOT_RUN}"


def test_every_page_with_blocks_to_run_has_a_test_that_runs_them() -> None:
    pages = {str(block.page.relative_to(ROOT)) for block in BLOCKS if block.info == RUN}
    assert pages == set(RUNNERS)
    for page, file in RUNNERS.items():
        assert Path(page).name in (ROOT / file).read_text(), f"{file} does not name {page}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_stands_in_an_indented_block(page: Path) -> None:
    """Only fenced blocks say whether they are run."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
    assert [line for line in text.splitlines() if re.match(rf"    {PROGRAMS} \S", line)] == []


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.has_commands], ids=name_of)
def test_the_compeft_commands_of_a_block_exist_with_these_options(block: Block) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        words = re.match(r"compeft ([a-z].*)", line.partition("  #")[0].strip())
        if words is not None and "--help" not in line:
            check(re.split(r"[<>|;&]", words[1])[0].split())
