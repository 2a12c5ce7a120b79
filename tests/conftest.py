"""Settings for all tests: Hypothesis draws the same cases every time, and no case fails for being slow on a busy machine. Tests that
start whole federations run one after the other, whatever the number of workers.
"""

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.xdist_group("e2e"))
