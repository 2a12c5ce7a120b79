"""A real federation on loopback as deploy/ describes it: `compeft serve`, Flower's SuperLink, nginx before it and on the workstation."""

import contextlib
import http.client
import json
import os
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import compeft_client.cli.main as cli
from compeft_server.demo.processes import Processes, free_ports
from tests.deploy.conftest import DEPLOY

BIN = Path(sys.executable).parent
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
}
APP = {
    "LICENSE": "none\n",
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "tiny"
version = "0.1.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41,<1.42"]
[tool.flwr.app]
publisher = "tests"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "tiny.server:app"
clientapp = "tiny.client:app"
[tool.flwr.app.config]
out = ""
""",
    "tiny/__init__.py": "",
    "tiny/client.py": """
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(msg, ctx):
    values = msg.content["arrays"].to_numpy_ndarrays()[0]
    return Message(RecordDict({"arrays": ArrayRecord([values + 1]), "metrics": MetricRecord({"num-examples": 1})}), reply_to=msg)
""",
    "tiny/server.py": """
import pathlib
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()
@app.main()
def main(grid, context):
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(3, np.float32)]), num_rounds=1)
    pathlib.Path(str(context.run_config["out"])).write_text(str(result.arrays.to_numpy_ndarrays()[0].tolist()))
""",
}


def command(*words: str | Path) -> str:
    """Run one `compeft` command to its end; its standard output."""
    done = subprocess.run([str(BIN / "compeft"), *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def adapted(source: Path, target: Path, changes: dict[str, str]) -> None:
    """Copy a configuration with other ports and folders; each thing that is replaced must be there."""
    text = source.read_text()
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in {source}"
        text = text.replace(old, new)
    target.write_text(text)


@dataclass
class Federation:
    """Everything that runs, and where."""

    folder: Path
    nginx: str
    processes: Processes

    def __post_init__(self) -> None:
        self.superlink_port, self.proxy_port, self.tunnel_port, self.node_port = free_ports(4)
        self.data, self.site, self.proxy = self.folder / "data", self.folder / "site", self.folder / "proxy"

    def start_aggregator(self) -> None:
        """`compeft serve` with an authority of its own, and one member that was invited and has enrolled."""
        command("ca", "init", "--data", self.data, "--host", "localhost")
        serve = [str(BIN / "compeft"), "serve", "--data", str(self.data), "--port", "0", "--enroll-port", "0", "--format", "json"]
        log = self.processes.start("aggregator", serve)
        self.processes.wait_for("the aggregator", lambda: '{"address"' in log.read_text())
        door = json.loads(next(line for line in log.read_text().splitlines() if line.startswith('{"address"')))["enrolment"]
        address = f"localhost:{door.rpartition(':')[2]}"
        invited = command("clients", "invite", "berlin-1", "--address", address, "--data", self.data, "--format", "json")
        assert cli.run(["enroll", json.loads(invited)["invitation"], "--site", str(self.site)]) == 0

    def start_superlink(self) -> None:
        """Flower's SuperLink on loopback with TLS and node authentication, as deploy/systemd/compeft-superlink.service starts it."""
        command("ca", "issue", self.proxy, "--host", "localhost", "--data", self.data)
        pem, authorities = str(self.proxy / "server.pem"), str(self.proxy / "ca.crt")
        words = ["flower-superlink", "--host", "127.0.0.1", "--port", str(self.superlink_port), "--enable-supernode-auth"]
        words += ["--ssl-certfile", pem, "--ssl-keyfile", pem, "--ssl-ca-certfile", authorities]
        words += ["--database", str(self.folder / "flower.sqlite"), "--disable-runtime-dependency-installation"]
        self.processes.start("superlink", words)
        self.processes.wait_for("the SuperLink", lambda: self.status("/health", self.superlink_port, "GET") == 200)
        home = self.folder / "flower"
        home.mkdir(exist_ok=True)
        link = f'address = "127.0.0.1:{self.superlink_port}"\nroot-certificates = "{authorities}"\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "own"\n\n[superlink.own]\n{link}')

    def start_proxy(self) -> None:
        """deploy/proxy/superlink.conf."""
        (self.proxy / "refused.map").write_text("")
        changes = {
            "listen 8444 ssl": f"listen 127.0.0.1:{self.proxy_port} ssl",
            "127.0.0.1:8000": f"127.0.0.1:{self.superlink_port}",
        }
        changes |= {"/tmp/compeft-": f"{self.folder}/compeft-", "/var/lib/compeft-proxy": str(self.proxy)}
        adapted(DEPLOY / "proxy" / "superlink.conf", self.proxy / "superlink.conf", changes)
        self._nginx("proxy", self.proxy, "superlink.conf")

    def start_tunnel(self) -> None:
        """deploy/proxy/edge.conf, beside the member's site folder; the certificate for loopback as deploy/install-edge.sh makes it."""
        subprocess.run([str(DEPLOY / "install-edge.sh"), "--tunnel-certificate", str(self.site)], check=True, capture_output=True)
        changes = {"fl.example:8444": f"localhost:{self.proxy_port}", "127.0.0.1:8001": f"127.0.0.1:{self.tunnel_port}"}
        changes |= {
            "fl.example": "localhost",
            "/var/lib/compeft-edge": str(self.site),
            "/tmp/compeft-": f"{self.folder}/compeft-",
        }
        adapted(DEPLOY / "proxy" / "edge.conf", self.site / "edge.conf", changes)
        self._nginx("tunnel", self.site, "edge.conf")

    def _nginx(self, name: str, prefix: Path, configuration: str) -> None:
        daemon = "daemon off; user root;" if os.geteuid() == 0 else "daemon off;"
        self.processes.start(name, [self.nginx, "-p", str(prefix), "-c", configuration, "-e", "stderr", "-g", daemon])
        port = self.proxy_port if name == "proxy" else self.tunnel_port
        self.processes.wait_for(name, lambda: self.listens(port))

    def reload_proxy(self) -> None:
        """As `systemctl reload compeft-proxy` does."""
        words = [self.nginx, "-p", str(self.proxy), "-c", "superlink.conf", "-e", "stderr", "-s", "reload"]
        subprocess.run(words, check=True, capture_output=True)

    @staticmethod
    def listens(port: int) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.connect()
        except OSError:
            return False
        connection.close()
        return True

    def trusting(self, identity: Path | None = None) -> ssl.SSLContext:
        """TLS that believes the aggregator's authority, with a certificate of its own or without."""
        context = ssl.create_default_context(cafile=self.site / "ca.crt")
        if identity is not None:
            context.load_cert_chain(identity)
        return context

    def status(
        self, path: str, port: int, method: str = "POST", identity: Path | None = None, body: bytes = b"", **headers: str
    ) -> int | None:
        """HTTP status of one request, None if the connection ended without a byte."""
        connection = http.client.HTTPSConnection("localhost", port, context=self.trusting(identity), timeout=10)
        try:
            connection.request(method, path, body=body, headers={"Content-Type": "application/protobuf", **headers})
            return connection.getresponse().status
        except (ssl.SSLError, http.client.RemoteDisconnected, ConnectionError):
            return None
        finally:
            connection.close()

    def through(self, path: str, method: str = "POST", body: bytes = b"", **headers: str) -> int | None:
        """The same through the proxy, as the member."""
        return self.status(path, self.proxy_port, method, self.site / "tls.pem", body, **headers)

    def flwr(self, *words: str) -> str:
        """Flower's own command line, on the aggregator's machine."""
        return self.processes.run("flwr", ["flwr", *words])

    def run_one_round(self, out: Path) -> str:
        """A trivial app through proxy and tunnel; what it merged."""
        app = self.folder / "app"
        for name, text in APP.items():
            (app / name).parent.mkdir(parents=True, exist_ok=True)
            (app / name).write_text(text)
        self.flwr("run", str(app), "own", "-c", f"out='{out}'")
        self.processes.wait_for("the round", lambda: out.exists() and out.read_text() != "", 90)
        return out.read_text()


@contextlib.contextmanager
def federation(folder: Path, nginx: str):  # type: ignore[no-untyped-def]  # a context manager of Federation
    """A running federation, without SuperNodes."""
    environment = ENVIRONMENT | {"FLWR_HOME": str(folder / "flower")}
    with Processes(folder / "logs", environment) as processes:
        made = Federation(folder, nginx, processes)
        made.start_aggregator()
        made.start_superlink()
        made.start_proxy()
        made.start_tunnel()
        yield made
