"""Child processes that end with us: each in a group of its own, its output in a log file, all of them stopped on the way out.

Invariant: no child runs that is not in the books. So a signal never interrupts: SIGINT, SIGTERM and SIGHUP are only noted, and `pause`,
through which everything here waits, raises KeyboardInterrupt. Where we are killed outright, Linux tells the children to end.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType, TracebackType
from typing import IO

from compeft_core.errors import CompeftError

GRACE_S = 5.0
TICK_S = 0.1
"""How long a signal may wait until it is looked at."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ProcessError(CompeftError):
    """A process we need ended, or did not become ready."""

    code = "process"


class Processes:
    """A context manager: whatever it started is gone when it is left, by whatever way. SIGINT, SIGTERM and SIGHUP end it as Ctrl-C does.

    Between entering and leaving, wait with `pause`: nothing else hears a signal. After one that was heard, further ones change nothing.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        binaries = str(Path(sys.executable).parent)
        self._logs = logs
        self._environment = {**os.environ, **environment, "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._interrupted = False

    def __enter__(self) -> "Processes":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._running.values():
                _signal(process, number)
            give_up = time.monotonic() + GRACE_S
            while any(p.poll() is None for p in self._running.values()) and time.monotonic() < give_up:
                time.sleep(0.05)
        if not self._interrupted:
            for number, action in self._before.items():
                signal.signal(number, action)
        elif error is None:
            raise KeyboardInterrupt

    def start(self, name: str, command: Sequence[str], **extra: str) -> Path:
        """Start `command`; its output goes to the file returned. `extra` are environment variables."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            self._begin(name, command, output, subprocess.STDOUT, **extra)
        return log

    def run(self, name: str, command: Sequence[str], timeout_s: float = 120.0) -> str:
        """Run `command` to its end; its standard output. Errors: ProcessError with the last line it said; KeyboardInterrupt."""
        give_up = time.monotonic() + timeout_s
        with TemporaryFile() as output, TemporaryFile() as errors:
            process = self._begin(name, command, output, errors)
            while process.poll() is None:
                if time.monotonic() > give_up:
                    raise ProcessError(f"{name} did not end within {timeout_s:.0f} s")
                self.pause(TICK_S)
            del self._running[name]
            said, complained = (_all_of(file) for file in (output, errors))
        with (self._logs / f"{name}.log").open("ab") as log:
            log.write(said + complained)
        if process.returncode:
            raise ProcessError(f"{name} ended with code {process.returncode}: {_last_line(complained or said)}")
        return said.decode()

    def check(self) -> None:
        """Errors: ProcessError if one that should still run has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                log = self._logs / f"{name}.log"
                raise ProcessError(f"{name} ended with code {process.returncode}: {_last_line(log.read_bytes())} (see {log})")

    def wait_for(self, what: str, ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until `ready()` is true.

        Errors: ProcessError if a process ends first, or after `timeout_s` seconds; KeyboardInterrupt.
        """
        give_up = time.monotonic() + timeout_s
        while not ready():
            self.check()
            if time.monotonic() > give_up:
                raise ProcessError(f"{what} not ready after {timeout_s:.0f} s: see the logs in {self._logs}")
            self.pause(TICK_S)

    def pause(self, seconds: float) -> None:
        """Let time pass. Errors: KeyboardInterrupt if a signal told us to end."""
        end = time.monotonic() + seconds
        while not self._interrupted and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, TICK_S))
        if self._interrupted:
            raise KeyboardInterrupt

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupted = True

    def _begin(
        self, name: str, command: Sequence[str], output: IO[bytes], errors: int | IO[bytes], **extra: str
    ) -> subprocess.Popen[bytes]:
        self._running[name] = subprocess.Popen(  # noqa: S603  # our own command lines
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={**self._environment, **extra},
            start_new_session=True,
            preexec_fn=_ending_with(os.getpid()) if sys.platform == "linux" else None,
        )
        return self._running[name]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that were free just now."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _ending_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes its command: ask for a SIGTERM at its parent's death, which may have been just now."""
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def _all_of(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _last_line(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
