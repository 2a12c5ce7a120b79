"""Flower and an aggregator as separate processes on loopback, deployed or simulated, and runs of an app on them."""

import json
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path

from compeft_proto.site_layout import SIMULATED_CONDUCTOR, SITE_VARIABLE, simulated
from compeft_server.admin.simulated_sites import make_sites
from compeft_server.data_directory import open_ledger
from compeft_server.demo.demo import ENVIRONMENT, _answers
from compeft_server.demo.processes import Processes, free_ports
from tests.e2e.test_demo import processes_of

LINK = "here"
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_agent_register_timeout_ms": "120000",
    "GRPC_ENABLE_FORK_SUPPORT": "false",
    "GRPC_EXPERIMENTS": "-event_engine_fork",
}
TIMEOUT_S = 400.0


class FlowerRuns:
    """`clients` SuperNodes with a site folder each; or, `simulate`, as many clients in Ray, with the same folders. `cut_off`: nobody
    listens at the aggregator's address that the SuperNodes know.
    """

    def __init__(
        self, processes: Processes, folder: Path, clients: int, *, simulate: bool, expert: str = "digits", cut_off: bool = False
    ) -> None:
        self._processes, self._clients, self._simulate = processes, clients, simulate
        self._sites, self._folder = folder / "sites", folder
        self.ledger = open_ledger(folder / "aggregator")
        aggregator, nobody, self._link, *self._ports = free_ports(3 + clients)
        self._known = ["--aggregator", f"127.0.0.1:{nobody}"] if cut_off else []
        make_sites(folder / "aggregator", self._sites, clients, f"127.0.0.1:{aggregator}", [expert])
        self._start(aggregator)

    def _start(self, port: int) -> None:
        data = self._folder / "aggregator"
        log = self._processes.start(
            "aggregator", ["compeft", "serve", "--data", str(data), "--port", str(port), "--format", "json"]
        )
        command = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self._link)]
        self._processes.start("superlink", [*command, "--simulation"] if self._simulate else command)
        self._processes.wait_for("the aggregator", lambda: '{"address"' in log.read_text())
        self._processes.wait_for("the SuperLink", lambda: _answers(f"http://127.0.0.1:{self._link}/health"))
        home = self._folder / "flower"
        home.mkdir(exist_ok=True)
        address = f'[superlink.{LINK}]\naddress = "127.0.0.1:{self._link}"\ninsecure = true\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "{LINK}"\n\n{address}')
        for number in range(0 if self._simulate else self._clients):
            self._join(number)

    def _join(self, number: int) -> None:
        command = ["compeft", "join", "--superlink", f"127.0.0.1:{self._link}", "--insecure"]
        command += ["--port", str(self._ports[number]), "--site", str(self._sites / simulated(number)), *self._known]
        command += ["-c", f"partition-id={number}", "-c", f"num-partitions={self._clients}"]
        self._processes.start(f"node-{number}", command)

    def run(self, app: Path, config: Mapping[str, object], *, compressed: bool = True) -> dict[str, object]:
        """Run an app to its end; what Flower lists of the run."""
        values = dict(config)
        if compressed and "site" in _run_config(app):
            values["site"] = str(self._sites / SIMULATED_CONDUCTOR)
        pairs = " ".join(f"{name}={json.dumps(value)}" for name, value in values.items())
        command = ["flwr", "run", str(app), LINK, "--stream", "-c", pairs]
        if self._simulate:
            command += ["--federation-config", f"num-supernodes={self._clients} client-resources-num-cpus=1 init-args-num-cpus=2"]
        self._processes.run("run", command, timeout_s=TIMEOUT_S)
        output = self._processes.run("list", ["flwr", "list", LINK, "--format", "json"])
        runs: list[dict[str, object]] = json.loads(output[output.index("{") :])["runs"]
        return max(runs, key=lambda run: str(run["pending-at"]))


def _run_config(app: Path) -> dict[str, object]:
    """The app's own run configuration: Flower refuses to override what is not in it."""
    found: dict[str, object] = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    return found


def left_of(folder: Path) -> list[str]:
    """Processes of `folder` that stay; Ray's workers take some seconds to see that their driver has gone."""
    give_up = time.monotonic() + 30
    while (found := processes_of(folder)) and time.monotonic() < give_up:
        time.sleep(0.5)
    return found


def environment(folder: Path) -> dict[str, str]:
    """What Flower's processes need to stay on this machine and in this folder, and to find their sites.

    Ray's server is told its port: it gives up after 30 s of waiting for one that the server chooses, which a busy machine needs. gRPC's
    handlers of forks are off: Ray forks its processes while the ServerApp calls the aggregator, and they abort some of them.
    """
    port = {"RAY_GCS_SERVER_PORT": str(free_ports(1)[0])}
    return ENVIRONMENT | RAY | port | {"FLWR_HOME": str(folder / "flower"), SITE_VARIABLE: str(folder / "sites")}
