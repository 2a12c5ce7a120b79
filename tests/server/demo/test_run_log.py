"""What the demo reads from a SuperLink's log: why a run stopped, and which clients failed."""

from pathlib import Path

from compeft_server.demo.demo import failed_clients, stopped_because

LOG = """\
INFO :      [ROUND 1/4]
WARNING :   client at node 7 failed in rounds 1, 2: LayoutMismatchError("tensor 'a' is missing")
WARNING :   client at node 7 failed in rounds 1, 2: LayoutMismatchError("tensor 'a' is missing")
Traceback (most recent call last):
compeft_server.flower.run_health.RunStoppedError: round 1: no client's update was accepted; 4 of 4 clients failed, first node 7: no torch
"""


def test_the_reason_why_a_run_stopped_is_found_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(LOG)
    expected = "round 1: no client's update was accepted; 4 of 4 clients failed, first node 7: no torch. Log:"
    assert stopped_because(tmp_path / "log") == expected


def test_each_client_that_failed_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(LOG)
    assert failed_clients(tmp_path / "log") == [
        "client at node 7 failed in rounds 1, 2: LayoutMismatchError(\"tensor 'a' is missing\")"
    ]


def test_a_log_that_says_nothing_gives_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("INFO : all is well\n")
    assert stopped_because(tmp_path / "log") == ""
    assert failed_clients(tmp_path / "log") == []
