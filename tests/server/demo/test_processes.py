"""Children that end with us: a signal at the worst moments, of which a child makes sure by sending it to its parent as its first act."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from compeft_server.demo.processes import ProcessError, Processes

TIMES = 10
PARENT = """
import sys
from pathlib import Path
from compeft_server.demo.processes import Processes

folder, times, way, shell = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
ended = 0
for _ in range(times):
    try:
        with Processes(folder, {}) as processes:
            getattr(processes, way)("child", ["sh", "-c", shell, str(folder)])
            print("started", flush=True)
            processes.pause(60)
    except KeyboardInterrupt:
        ended += 1
print(ended)
"""


def parent(folder: Path, times: int, way: str, shell: str) -> subprocess.Popen[str]:
    """A process that runs `shell` as its child, by `start` or `run`, until it is interrupted, `times` times. $0 is the folder."""
    (folder / "file").touch()
    command = [sys.executable, "-c", PARENT, str(folder), str(times), way, shell]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def left(folder: Path) -> list[str]:
    """Running processes that name the folder, once those that were killed just now had a moment to go."""
    give_up = time.monotonic() + 10
    while (found := _naming(folder)) and time.monotonic() < give_up:
        time.sleep(0.05)
    return found


def _naming(folder: Path) -> list[str]:
    lines = [
        " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline", "status"]) if p.info["status"] != "zombie"
    ]
    return [line for line in lines if str(folder) in line]


@pytest.mark.parametrize("way", ["start", "run"])
@pytest.mark.parametrize(
    "shell",
    [
        pytest.param("kill -INT $PPID; tail -f $0/file", id="at once"),
        pytest.param("(while kill -TERM $PPID; do :; done) & tail -f $0/file", id="again and again"),
        pytest.param("tail -f $0/file & sleep 0.0$(date +%N | cut -c3-4); kill -HUP $PPID; wait", id="some time"),
    ],
)
def test_a_signal_while_a_child_is_being_started_leaves_none(tmp_path: Path, way: str, shell: str) -> None:
    with parent(tmp_path, TIMES, way, shell) as process:
        said, _ = process.communicate(timeout=120)
    assert said.split()[-1] == str(TIMES)
    assert left(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_a_parent_that_is_killed_outright_takes_its_children_along(tmp_path: Path) -> None:
    with parent(tmp_path, 1, "start", "exec tail -f $0/file") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.kill()
    assert left(tmp_path) == []


def test_signals_are_heard_again_by_those_that_heard_them_before(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Processes(tmp_path, {}) as processes:
        assert processes.run("true", ["echo", "done"]) == "done\n"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_command_that_fails_or_does_not_end_is_told_by_name(tmp_path: Path) -> None:
    with Processes(tmp_path, {}) as processes:
        with pytest.raises(ProcessError, match="ended with code 3: so it is"):
            processes.run("wrong", ["sh", "-c", "echo so it is >&2; exit 3"])
        processes.check()
        with pytest.raises(ProcessError, match="slow did not end within 0 s"):
            processes.run("slow", ["tail", "-f", str(tmp_path / "wrong.log")], timeout_s=0.2)
    assert left(tmp_path) == []
    assert (tmp_path / "wrong.log").read_text() == "so it is\n"
