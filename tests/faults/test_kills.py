"""SIGKILL of the aggregator and of its clients at random moments, under load."""

from pathlib import Path

from tests.faults.storm import Storm


def test_kills_at_random_moments_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    with Storm(tmp_path, clients=3, seed=1) as storm:
        outcome = storm.run(kills=5)
    assert outcome.kills.total() >= 5
    assert outcome.acknowledged == outcome.merged == 3 * outcome.rounds
