"""`compeft demo`: the whole system on this machine, for real. It only starts processes, watches the ledger, and writes the report.

The aggregator, Flower's SuperLink and four SuperNodes with a key and a state directory each run on loopback and are gone when it
ends, by whatever way. What it leaves is one folder: logs, the report as HTML and JSON, and the composed expert as a PEFT directory.
"""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from compeft_proto.clock import now_ms
from compeft_proto.errors import UnknownExpertError
from compeft_proto.keys import new_key
from compeft_proto.site_layout import SITE_VARIABLE, simulated
from compeft_server.admin import policy_admin
from compeft_server.admin.simulated_sites import make_sites
from compeft_server.data_directory import open_ledger, open_store
from compeft_server.demo.apps import DemoApp, language_model, sentiment
from compeft_server.demo.processes import ProcessError, Processes, free_ports
from compeft_server.demo.progress_lines import ProgressLines
from compeft_server.domain.records import Role
from compeft_server.ledger.ledger import Ledger
from compeft_server.reports.figures.build import read_report
from compeft_server.reports.figures.extras import Extras, Pool, densities_of, pool_from_json
from compeft_server.reports.figures.provenance import own_public_keys
from compeft_server.reports.figures.report import DenseArm, Report
from compeft_server.reports.formats.json_format import dense_to_json

CLIENTS = 4
POOL_EXPERTS = 8
LINK = "demo"
ASK_S = 6.0
"""Seconds between two looks at a run's status: each is a process of Flower's command line."""
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What to run and where to put it. compare: also run plain Flower FedAvg, dense, with the same seeds and rounds. model: "" for the
    classifier of sentiment, else the language model of `apps.language_model`.
    """

    folder: Path
    rounds: int = 4
    seed: int = 0
    density: float = 0.05
    compare: bool = False
    timeout_s: float = 1800.0
    model: str = ""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What came out: the report and what stands beside it, the bytes of Flower's control plane, and the folder of the composed expert."""

    report: Report
    control_bytes: int
    expert: Path
    extras: Extras


def run_demo(settings: DemoSettings, console: Console) -> DemoResult:
    """Run the demo. Errors: ProcessError if a process fails, InputError if the example app cannot be found."""
    app, folder = language_model(settings.model) if settings.model else sentiment(), settings.folder
    flower = {"FLWR_HOME": str(folder / "flower")}
    with Processes(folder / "logs", ENVIRONMENT | flower) as processes, _progress(console) as progress:
        stage = _Stage(processes, folder, app, settings)
        progress.console.print(
            f"starting the aggregator, Flower's SuperLink and {CLIENTS} SuperNodes; everything goes to {folder}"
        )
        stage.start()
        started = time.monotonic()
        run = stage.run_compressed(progress)
        seconds = time.monotonic() - started
        expert = stage.pull()
        pool = None if settings.model else stage.measure_pool(progress)
        dense = stage.run_dense(progress) if settings.compare else None
        data = folder / "aggregator"
        densities = densities_of(stage.ledger, app.expert, own_public_keys(data), open_store(data))
        report = read_report(stage.ledger, app.expert, dense, seconds)
        return DemoResult(report, stage.traffic(run), expert, Extras(pool=pool, densities=densities))


class _Stage:
    """The processes of one demo, and what is asked of them."""

    def __init__(self, processes: Processes, folder: Path, app: DemoApp, settings: DemoSettings) -> None:
        self._processes, self._folder, self._app, self._settings = processes, folder, app, settings
        self.ledger: Ledger = open_ledger(folder / "aggregator")
        self._address = ""

    def start(self) -> None:
        """Start everything and wait until it answers."""
        link, *nodes = free_ports(CLIENTS + 1)
        data = self._folder / "aggregator"
        self._enrol("conductor", "conductor")
        self._enrol("reader", "reader")
        expert = self._app.expert
        policy_admin.rule(self.ledger, "allow", expert, "role:edge", policy_admin.USUAL["edge"], now_ms())
        policy_admin.rule(self.ledger, "allow", expert, "reader", policy_admin.USUAL["reader"], now_ms())
        log = self._processes.start("aggregator", ["compeft", "serve", "--data", str(data), "--port", "0", "--format", "json"])
        sites = {} if self._app.has_switch else {SITE_VARIABLE: str(self._folder / "sites")}
        command = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(link)]
        self._processes.start("superlink", command, **sites)
        self._processes.wait_for("the aggregator", lambda: _address_in(log) is not None)
        self._address = _address_in(log) or ""
        self._processes.wait_for("Flower's SuperLink", lambda: _answers(f"http://127.0.0.1:{link}/health"))
        if not self._app.has_switch:
            make_sites(data, self._folder / "sites", CLIENTS, self._address, [expert])
        (self._folder / "flower").mkdir(exist_ok=True)
        config = f'[superlink]\ndefault = "{LINK}"\n\n[superlink.{LINK}]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
        (self._folder / "flower" / "config.toml").write_text(config)
        for number, port in enumerate(nodes):
            self._join(f"edge-{number}", number, link, port)

    def run_compressed(self, progress: Progress) -> int:
        """The federated run over the aggregator; its number."""
        switch = {
            "compressed": True,
            "expert": self._app.expert,
            "density": self._settings.density,
            "aggregator": self._address,
            "aggregator-key": str(self._folder / "aggregator" / "aggregator.pub"),
            "conductor-key": str(self._folder / "keys" / "conductor.key"),
        }
        run = self._flwr_run(self._app.compressed, switch if self._app.has_switch else {})
        self._watch(progress, "compressed", run, self._rounds_closed)
        return run

    def run_dense(self, progress: Progress) -> DenseArm:
        """The same app, plain: Flower's own FedAvg and messages."""
        results, started = self._folder / "dense-rounds.json", time.monotonic()
        switch = {"compressed": False} if self._app.has_switch else {}
        run = self._flwr_run(self._app.plain, switch | {"results-file": str(results)})
        self._watch(progress, "dense FedAvg", run, lambda: (0, "plain Flower messages"))
        expert = self.ledger.expert(self._app.expert)
        if expert is None:
            raise UnknownExpertError(f"no expert {self._app.expert!r} was published")
        seconds = time.monotonic() - started
        moved = 4 * expert.layout.size * CLIENTS * self._app.exchanges(self._settings.rounds)
        arm = _dense_arm(json.loads(results.read_text()), moved, self.traffic(run), seconds)
        (self._folder / "dense.json").write_text(dense_to_json(arm))
        return arm

    def pull(self) -> Path:
        """Fetch the composed expert as anybody with a reader's key would."""
        target = self._folder / "expert"
        self._processes.run("pull", ["compeft", "pull", self._app.expert, "-o", str(target), *self._as_reader()])
        return target

    def measure_pool(self, progress: Progress) -> Pool:
        """Switch between experts of this size in a pool on this machine, which reports to the aggregator as one that serves would."""
        progress.console.print(f"switching between {POOL_EXPERTS} experts of this size in a pool")
        found, target = self.ledger.expert(self._app.expert), self._folder / "pool.json"
        size = found.layout.size if found else 0
        command = ["compeft", "bench", "pool", "--report", "--parameters", str(size), "--experts", str(POOL_EXPERTS)]
        self._processes.run("pool", [*command, "-o", str(target), *self._as_reader()])
        return pool_from_json(target.read_text(encoding="utf-8"))

    def _as_reader(self) -> list[str]:
        """Options of a command that the reader gives."""
        options = ["--aggregator", self._address, "--aggregator-key", str(self._folder / "aggregator" / "aggregator.pub")]
        options += ["--key", str(self._folder / "keys" / "reader.key")]
        return [*options, "--state-dir", str(self._folder / "states" / "reader")]

    def _enrol(self, name: str, role: Role) -> Path:
        key, path = new_key(), self._folder / "keys" / f"{name}.key"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(key.to_pem())
        self.ledger.enrol(name, key.public, role, now_ms())
        return path

    def _join(self, name: str, number: int, link: int, port: int) -> None:
        command = ["compeft", "join", "--superlink", f"127.0.0.1:{link}", "--insecure", "--port", str(port)]
        if self._app.has_switch:
            command += ["--aggregator", self._address, "--aggregator-key", str(self._folder / "aggregator" / "aggregator.pub")]
            command += ["--key", str(self._enrol(name, "edge")), "--state-dir", str(self._folder / "states" / name)]
        else:
            command += ["--site", str(self._folder / "sites" / simulated(number))]
        command += ["-c", f"partition-id={number}", "-c", f"num-partitions={CLIENTS}"]
        self._processes.start(name, command)

    def _flwr_run(self, app: Path, config: dict[str, object]) -> int:
        config |= {"num-server-rounds": self._settings.rounds, "seed": self._settings.seed, **self._app.config}
        config |= {"num-clients": CLIENTS} if self._app.has_switch else {}
        pairs = " ".join(f"{name}={json.dumps(value)}" for name, value in config.items())
        output = self._processes.run("flwr", ["flwr", "run", str(app), LINK, "--format", "json", "-c", pairs])
        return int(json.loads(output[output.index("{") :])["run-id"])

    def _watch(self, progress: Progress, name: str, run: int, state: Callable[[], tuple[int, str]]) -> None:
        """Show the rounds of a run until it has finished. Errors: ProcessError if it fails or takes too long."""
        task = progress.add_task(name, total=self._settings.rounds, detail="")
        lines = ProgressLines(progress.console, name, self._settings.rounds)
        give_up, ask_at = time.monotonic() + self._settings.timeout_s, time.monotonic() + ASK_S
        while time.monotonic() < give_up:
            self._processes.check()
            done, detail = state()
            progress.update(task, completed=done, detail=detail)
            lines.tell(done, detail)
            if time.monotonic() > ask_at:
                status, ask_at = str(self._listed(run)["status"]), time.monotonic() + ASK_S
                if status == "finished:completed":
                    progress.update(task, completed=self._settings.rounds)
                    for line in failed_clients(self._folder / "logs" / "superlink.log"):
                        progress.console.print(line, style="yellow", markup=False)
                    return
                if status.startswith("finished"):
                    log = self._folder / "logs" / "superlink.log"
                    raise ProcessError(f"the Flower run ended as {status}: {stopped_because(log) or 'see'} {log}")
            self._processes.pause(0.5)
        raise ProcessError(f"the Flower run took longer than {self._settings.timeout_s:.0f} s")

    def _rounds_closed(self) -> tuple[int, str]:
        rounds = self.ledger.rounds(self._app.expert)
        moved = self.ledger.transfers(self._app.expert)
        wire = sum(t.wire_received_bytes + t.wire_sent_bytes for t in moved)
        waiting = [r for r in rounds if r.closed_at_ms is None]
        here = len(self.ledger.submissions(self._app.expert, waiting[-1].run, waiting[-1].round)) if waiting else 0
        detail = f"{here}/{CLIENTS} clients, " if waiting else ""
        return sum(r.closed_at_ms is not None for r in rounds), f"{detail}{wire / 1000:.0f} kB on the wire"

    def traffic(self, run: int) -> int:
        """Bytes that Flower counted between SuperLink and SuperNodes for one run, both directions."""
        traffic = self._listed(run)["network-traffic"]
        return int(traffic["inbound-bytes"]) + int(traffic["outbound-bytes"])

    def _listed(self, run: int) -> dict[str, dict[str, int]]:
        output = self._processes.run("flwr", ["flwr", "list", LINK, "--run-id", str(run), "--format", "json"])
        listed: dict[str, dict[str, int]] = json.loads(output[output.index("{") :])["runs"][0]
        return listed


def stopped_because(log: Path) -> str:
    """Why the newest run in a SuperLink's log stopped, with a full stop and "Log:" behind it; empty if the log does not say."""
    reasons = re.findall(r"RunStoppedError: (.+)", log.read_text(errors="replace"))
    return f"{reasons[-1].strip()}. Log:" if reasons else ""


def failed_clients(log: Path) -> list[str]:
    """The lines of a SuperLink's log that name clients which failed while others trained, each once."""
    return list(dict.fromkeys(re.findall(r"client at node \d+ failed in rounds .+", log.read_text(errors="replace"))))


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TextColumn("rounds"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[detail]}"), console=console)


def _address_in(log: Path) -> str | None:
    for line in log.read_text().splitlines():
        if line.startswith('{"address"'):
            return str(json.loads(line)["address"])
    return None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310  # a loopback http address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _dense_arm(results: dict[str, list[float]], moved: int, traffic: int, seconds: float) -> DenseArm:
    """What the plain run measured: its app's accuracies, and Flower's own count of bytes. moved: bytes of all its arrays as float32."""
    accuracy = results["accuracy"]
    return DenseArm(
        metric="accuracy",
        metrics=tuple(accuracy),
        clients=CLIENTS,
        dense_fp32_bytes=moved,
        wire_bytes=traffic,
        seconds=seconds,
        counted="Flower's own counter (messages and objects between SuperLink and SuperNodes; HTTP and polling not counted)",
        base=results.get("base-accuracy", accuracy)[0],
    )
