"""An aggregator in a process of its own, that can be killed and started again on the same data; keys and certificates for its clients.

No test lives here; the tests, the longer runs and the benchmarks share it.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import trustme

from compeft_proto.clock import now_ms
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.transport import ClientTls
from compeft_server.data_directory import open_ledger
from compeft_server.domain.records import Role
from compeft_server.flower.conductor import Conductor, ConductorConfig
from compeft_server.identity.aggregator_keys import own_key
from tests.rounds.conftest import grant_usual

START_S = 60.0


def until(ready: Callable[[], bool], limit_s: float = 10.0) -> None:
    """Wait for it, or for the end of `limit_s` seconds."""
    give_up = time.monotonic() + limit_s
    while not ready() and time.monotonic() < give_up:
        time.sleep(0.02)


def free_port() -> int:
    """A port of loopback that was free just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Site:
    """One aggregator's folder and process. `options` go to `compeft serve`; `environment` to the process."""

    folder: Path
    tls: bool = False
    options: tuple[str, ...] = ()
    data: Path = field(init=False)
    client_tls: ClientTls | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = self.folder / "data"
        self.port = free_port()
        self.address = f"localhost:{self.port}" if self.tls else f"127.0.0.1:{self.port}"
        self.ledger = open_ledger(self.data)
        self.key = own_key(self.data)
        self.conductor_key = self.enrol("conductor", "conductor")
        grant_usual(self.ledger)
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [str(Path(sys.executable).parent / "compeft"), "serve", "--data", str(self.data)]
        self._command += ["--port", str(self.port), "--format", "json", *self.options]
        if self.tls:
            self._certify()

    def enrol(self, name: str, role: Role = "edge") -> SigningKey:
        """A new member's key."""
        key = new_key()
        self.ledger.enrol(name, key.public, role, now_ms())
        return key

    def conductor(self) -> Conductor:
        """The conductor."""
        return Conductor(ConductorConfig(self.address, self.conductor_key, self.key.public, self.client_tls))

    def start(self) -> None:
        """Start the aggregator and wait until it listens."""
        log = self.folder / "serve.log"
        with log.open("ab") as output:
            before = log.read_text().count('{"address"')
            self._process = subprocess.Popen(self._command, stdout=output, stderr=output)
        give_up = time.monotonic() + START_S
        while log.read_text().count('{"address"') == before:
            assert self._process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < give_up, log.read_text()[-2000:]
            time.sleep(0.02)

    def reopen(self) -> None:
        """Let go of the ledger's files and take them up again."""
        self.ledger.close()
        self.ledger = open_ledger(self.data)

    def kill(self) -> None:
        """End the aggregator as a power cut would end it: SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End the aggregator in good order, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            assert self._process.wait(60) == 0

    def close(self) -> None:
        """Stop the aggregator and let go of the ledger."""
        self.stop()
        self.ledger.close()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running aggregator."""
        assert self._process is not None
        return self._process

    def resident_bytes(self) -> int:
        """Memory that the aggregator's process holds now."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def peak_bytes(self) -> int:
        """The most memory that the aggregator's process has held."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])

    def _certify(self) -> None:
        authority = trustme.CA()
        server, client = authority.issue_cert("localhost", "127.0.0.1"), authority.issue_cert("edge")
        blobs = {"cert": server.cert_chain_pems[0], "key": server.private_key_pem, "client-ca": authority.cert_pem}
        for name, blob in blobs.items():
            blob.write_to_path(str(self.folder / f"{name}.pem"))
            (self.folder / f"{name}.pem").chmod(0o600)
            self._command += [f"--tls-{name}", str(self.folder / f"{name}.pem")]
        chain = b"".join(blob.bytes() for blob in client.cert_chain_pems)
        self.client_tls = ClientTls(authority.cert_pem.bytes(), chain, client.private_key_pem.bytes())
