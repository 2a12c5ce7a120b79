"""Kills each process of a federation in turn, with SIGKILL, and counts what that cost: `python -m tests.e2e.kill_each`.

Flower resumes nothing: a killed ServerApp or SuperLink ends its run. The expert, the rounds and every client's residual are not
Flower's, so a new run goes on from the aggregator's newest version, and what was lost is at most the round under way. One deployment on
loopback: an aggregator, a SuperLink, two SuperNodes, an app of a few numbers. Prints a line a kill; ends with 1 if a promise was broken.
Two minutes.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from compeft_proto.clock import now_ms
from compeft_proto.keys import new_key
from compeft_server.admin.lineage import Versions
from compeft_server.data_directory import open_ledger, open_store
from compeft_server.demo.demo import ENVIRONMENT, LINK, _address_in, _answers
from compeft_server.demo.processes import Processes, free_ports
from compeft_server.domain.records import Role
from compeft_server.identity.aggregator_keys import own_key

APP, EXPERT, NODES = Path(__file__).parent / "tiny_app", "tiny", 2
PATIENCE_S = 150.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a kill cost: the newest version before it and when all was well again, rounds closed unmerged in between, seconds."""

    killed: str
    before: int
    after: int
    unmerged: int
    seconds: float


class Federation:
    """The processes, and what is done to them."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes, self._folder = processes, folder
        self.ledger = open_ledger(folder / "aggregator")
        self._link, *self._ports = free_ports(1 + NODES)
        self._address = ""

    def start(self) -> None:
        for name, role in (("conductor", "conductor"), *((f"edge-{n}", "edge") for n in range(NODES))):
            self._enrol(name, role)  # type: ignore[arg-type]  # both are roles
        data = self._folder / "aggregator"
        log = self._processes.start("aggregator", ["compeft", "serve", "--data", str(data), "--port", "0", "--format", "json"])
        self.start_link()
        self._processes.wait_for("the aggregator", lambda: _address_in(log) is not None)
        self._address = _address_in(log) or ""
        home = self._folder / "flower"
        home.mkdir(exist_ok=True)
        lines = [f'[superlink]\ndefault = "{LINK}"', f'[superlink.{LINK}]\naddress = "127.0.0.1:{self._link}"\ninsecure = true']
        (home / "config.toml").write_text("\n\n".join(lines) + "\n")
        for number in range(NODES):
            self.start_node(number)

    def start_link(self) -> None:
        command = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self._link)]
        self._processes.start("superlink", [*command, "--database", str(self._folder / "superlink.db")])
        self._wait("the SuperLink", lambda: _answers(f"http://127.0.0.1:{self._link}/health"))

    def start_node(self, number: int) -> None:
        name, aggregator = f"edge-{number}", self._folder / "aggregator" / "aggregator.pub"
        command = ["compeft", "join", "--superlink", f"127.0.0.1:{self._link}", "--insecure", "--port", str(self._ports[number])]
        command += ["--aggregator", self._address, "--aggregator-key", str(aggregator)]
        command += ["--key", str(self._folder / f"{name}.key"), "--state-dir", str(self._folder / "states" / name)]
        self._processes.start(name, command)

    def new_run(self) -> str:
        """Start a run; its number."""
        values = {
            "aggregator": self._address,
            "aggregator-key": str(self._folder / "aggregator" / "aggregator.pub"),
            "conductor-key": str(self._folder / "conductor.key"),
        }
        pairs = " ".join(f"{name}={json.dumps(value)}" for name, value in values.items())
        output = self._processes.run("flwr", ["flwr", "run", str(APP), LINK, "--format", "json", "-c", pairs])
        return str(json.loads(output[output.index("{") :])["run-id"])

    def head(self) -> int:
        return self.ledger.head(EXPERT) if self.ledger.expert(EXPERT) else -1

    def kill(self, name: str, inside: str = "") -> None:
        """SIGKILL to a process that we started, with its children; or to its child whose command line has `inside`, once there is one."""
        parent = psutil.Process(self._processes._running[name].pid)
        if not inside:
            os.killpg(parent.pid, signal.SIGKILL)
            parent.wait(10)
            return
        self._wait(f"{inside} of {name}", lambda: any(True for _ in _children(parent, inside)))
        for child in _children(parent, inside):
            child.kill()

    def wait_for_version(self, number: int, run: str = "") -> None:
        """Until there is a version above `number`, of `run` if one is named."""
        self._wait(f"version {number + 1}", lambda: any(not run or v.run == run for v in self._after(number)))

    def _after(self, number: int) -> list[object]:
        return list(self.ledger.versions(EXPERT, number, self.head())) if self.head() > number else []

    def wait_for_open_round(self) -> None:
        """Until a round is under way: the worst time to be killed."""
        self._wait("an open round", lambda: any(r.closed_at_ms is None for r in self.ledger.rounds(EXPERT)))

    def unmerged(self) -> int:
        """Rounds that are closed and led to no version."""
        return sum(r.closed_at_ms is not None and r.version == r.base_version for r in self.ledger.rounds(EXPERT))

    def _enrol(self, name: str, role: Role) -> None:
        key, path = new_key(), self._folder / f"{name}.key"
        path.touch(mode=0o600)
        path.write_bytes(key.to_pem())
        self.ledger.enrol(name, key.public, role, now_ms())

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not ready():
            if time.monotonic() > give_up:
                raise TimeoutError(f"{what} did not come within {PATIENCE_S:.0f} s")
            self._processes.pause(0.1)


def _children(parent: psutil.Process, inside: str) -> Iterator[psutil.Process]:
    for child in parent.children(recursive=True):
        try:
            if inside in " ".join(child.cmdline()):
                yield child
        except psutil.NoSuchProcess:
            continue


def kill_each(folder: Path) -> list[Cost]:
    """One deployment, four kills. Errors: TimeoutError if the federation does not go on after one."""
    flower = {"FLWR_HOME": str(folder / "flower")}
    with Processes(folder / "logs", ENVIRONMENT | flower) as processes:
        federation = Federation(processes, folder)
        federation.start()
        federation.new_run()
        federation.wait_for_version(0)
        costs: list[Cost] = []

        @contextmanager
        def costing(name: str) -> Iterator[int]:
            before, unmerged, started = federation.head(), federation.unmerged(), time.monotonic()
            yield before
            after = (federation.head(), federation.unmerged() - unmerged, time.monotonic() - started)
            costs.append(Cost(name, before, *after))
            print(
                f"killed {name:10} at version {before:3}: version {after[0]:3} after {after[2]:5.1f} s, rounds lost {after[1]}",
                flush=True,
            )

        with costing("ClientApp") as before:
            federation.kill("edge-0", "flwr-clientapp")
            federation.wait_for_version(before + 1)
        with costing("SuperNode") as before:
            federation.kill("edge-0")
            federation.start_node(0)
            federation.wait_for_version(before + 1)
        federation.wait_for_open_round()
        with costing("ServerApp") as before:
            federation.kill("superlink", "flwr-serverapp")
            federation.wait_for_version(before, federation.new_run())
        federation.wait_for_open_round()
        with costing("SuperLink") as before:
            federation.kill("superlink")
            federation.start_link()
            federation.wait_for_version(before, federation.new_run())
        data = folder / "aggregator"
        versions = Versions(own_key(data), open_store(data), federation.ledger)
        for number in range(federation.head() + 1):
            versions.verify(EXPERT, number)
        print(f"all {federation.head() + 1} versions recompute bit for bit")
        return costs


def main() -> int:
    """Run in a fresh folder, which is left behind if something went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="kill-each-"))
    costs = kill_each(folder)
    broken = [cost for cost in costs if cost.after <= cost.before or cost.unmerged > 1]
    print(
        f"{len(costs)} kills, {sum(cost.unmerged for cost in costs)} rounds lost"
        + (f"; broken: {broken}, see {folder}" if broken else "")
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
