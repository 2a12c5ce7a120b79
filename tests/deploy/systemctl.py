#!/usr/bin/env python3
"""Stands in for systemctl where no systemd runs: it starts what the units of deploy/systemd say, in the folders that the environment names.

`compeft-aggregator.service` really runs, `compeft-certificates.service` is really carried out; of other units only the file must be there.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

UNITS, BIN, DATA = Path(os.environ["TEST_UNITS"]), os.environ["TEST_BIN"], os.environ["DATA"]
STATE = Path(os.environ["TEST_STATE"])
PID = STATE / "aggregator.pid"


def words_of(unit: str) -> list[str]:
    """The command that a unit starts."""
    text = (UNITS / unit).read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    for old, new in (("/opt/compeft/bin", BIN), ("/var/lib/compeft-proxy", f"{DATA}-proxy"), ("/var/lib/compeft", DATA)):
        line = line.replace(old, new)
    for port in ("9443", "8443"):
        line = line.replace(port, os.environ[f"TEST_{port}"])
    line = line.replace("$OPTIONS", f"--enroll-port {os.environ['TEST_9444']}").replace("${HOST}", os.environ["HOST"])
    return shlex.split(line.removeprefix("ExecStart="))


def start() -> None:
    with (STATE / "aggregator.log").open("ab") as log:
        process = subprocess.Popen(words_of("compeft-aggregator.service"), stdout=log, stderr=log, start_new_session=True)
    PID.write_text(str(process.pid))


def stop() -> None:
    if not PID.exists():
        return
    pid = int(PID.read_text())
    PID.unlink()
    os.kill(pid, signal.SIGTERM)
    for _ in range(300):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    sys.exit(f"{pid} did not end")


def main() -> None:
    action, *rest = [word for word in sys.argv[1:] if word != "--now"]
    for unit in rest:
        if not (UNITS / unit).exists():
            sys.exit(f"no unit {unit} in {UNITS}")
        if unit == "compeft-aggregator.service":
            if action in ("stop", "restart"):
                stop()
            if action in ("start", "restart", "enable"):
                start()
        elif unit == "compeft-certificates.service" and action in ("start", "restart"):
            subprocess.run(words_of(unit), check=True)


main()
