"""Settings for all tests: Hypothesis draws the same cases every time, and no case fails for being slow on a busy machine. Tests that
start whole federations run one after the other, whatever the number of workers.
"""

import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("steady")


ALONE = ("tests/e2e/", "tests/deploy/test_operations.py", "tests/deploy/test_proxy.py")
"""Where tests marked `e2e` are: they start whole federations, so one worker runs all of them, one after the other."""


def group_of(nodeid: str) -> str:
    """Tests of one group run on one worker: those of a file, whose fixtures are then built once, and all that are marked `e2e`."""
    return "e2e" if nodeid.startswith(ALONE) else nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long e2e group first, so that the other workers do the rest meanwhile."""
    for item in items:
        if item.get_closest_marker("e2e") and group_of(item.nodeid) != "e2e":
            raise pytest.UsageError(f"{item.nodeid} is marked e2e: add its file to ALONE in tests/conftest.py")
    if not os.environ.get("COMPEFT_TEST_LONG"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: make test-long runs it"))
    items.sort(key=lambda item: group_of(item.nodeid) != "e2e")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute groups, in the order of collection. xdist's own `loadgroup` reads a private attribute that pytest 9.2 ignores."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The last lines say what was skipped and what it takes: a reason names the missing program or device and how to get it."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports if isinstance(report.longrepr, tuple))
    if reasons:
        terminalreporter.section("skipped, and what it takes to run it")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:>5}  {reason}")
