"""A minute of the long storm: everything that `python -m tests.faults.run --hours` lets happen, on both kinds of storage."""

from pathlib import Path

import pytest

from tests.faults.long_storm import Counted, on_a_small_disk, on_servers

HOURS = 0.0015


@pytest.mark.parametrize("place", [on_a_small_disk, on_servers], ids=["disk", "servers"])
def test_whatever_happens_nothing_is_lost_and_nothing_counts_twice(tmp_path: Path, place: object) -> None:
    with place(tmp_path / "storm", 2, 5) as storm:  # type: ignore[operator]  # either of the two
        counted: Counted = storm.go_on(HOURS)
    assert counted.outcome.acknowledged == counted.outcome.merged > 0
    assert counted.attacks.total() > 0
    print(counted)  # with -s
