"""Fixtures of other folders that the attacks use too."""

from tests.faults.test_disk import small_disk
from tests.rounds.conftest import world

__all__ = ["small_disk", "world"]
