"""Child processes that end with us: each in a group of its own, its output in a log file, all of them stopped on the way out."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

from compeft_core.errors import CompeftError

GRACE_S = 5.0


class ProcessError(CompeftError):
    """A process we need ended, or did not become ready."""

    code = "process"


class Processes:
    """A context manager: whatever it started is gone when it is left, by whatever way; SIGINT and SIGTERM end it as Ctrl-C does."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        binaries = str(Path(sys.executable).parent)
        self._logs = logs
        self._environment = {**os.environ, **environment, "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Processes":
        _on_signals(signal.default_int_handler)  # also where a shell has started us with SIGINT ignored
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        _on_signals(signal.SIG_IGN)  # a second Ctrl-C must not leave half of them running
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._running.values():
                _signal(process, number)
            give_up = time.monotonic() + GRACE_S
            while any(p.poll() is None for p in self._running.values()) and time.monotonic() < give_up:
                time.sleep(0.05)
        _on_signals(signal.default_int_handler)

    def start(self, name: str, command: Sequence[str], **extra: str) -> Path:
        """Start `command`; its output goes to the file returned. `extra` are environment variables."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            self._running[name] = subprocess.Popen(  # noqa: S603  # our own command lines
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self._environment, **extra},
                start_new_session=True,
            )
        return log

    def run(self, name: str, command: Sequence[str], timeout_s: float = 120.0) -> str:
        """Run `command` to its end; its standard output. Errors: ProcessError with the last line it said."""
        try:
            done = subprocess.run(  # noqa: S603  # our own command lines
                command, stdin=subprocess.DEVNULL, capture_output=True, env=self._environment, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ProcessError(f"{name} did not end within {timeout_s:.0f} s") from error
        with (self._logs / f"{name}.log").open("ab") as log:
            log.write(done.stdout + done.stderr)
        if done.returncode:
            raise ProcessError(f"{name} ended with code {done.returncode}: {_last_line(done.stderr or done.stdout)}")
        return done.stdout.decode()

    def check(self) -> None:
        """Errors: ProcessError if one that should still run has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                log = self._logs / f"{name}.log"
                raise ProcessError(f"{name} ended with code {process.returncode}: {_last_line(log.read_bytes())} (see {log})")

    def wait_for(self, what: str, ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until `ready()` is true. Errors: ProcessError if a process ends first, or after `timeout_s` seconds."""
        give_up = time.monotonic() + timeout_s
        while not ready():
            self.check()
            if time.monotonic() > give_up:
                raise ProcessError(f"{what} not ready after {timeout_s:.0f} s: see the logs in {self._logs}")
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that were free just now."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _on_signals(action: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, action)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _last_line(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
