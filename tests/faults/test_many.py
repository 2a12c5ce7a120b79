"""Many clients at once: all are accepted, and memory stays within a few chunks a transfer."""

from pathlib import Path

from tests.faults.many import crowd


def test_many_clients_at_once_are_accepted_in_bounded_memory(tmp_path: Path) -> None:
    outcome = crowd(tmp_path, clients=16, payload_bytes=8 * 2**20)
    assert outcome.accepted == 16
    assert outcome.peak_bytes - outcome.idle_bytes <= outcome.bound_bytes
