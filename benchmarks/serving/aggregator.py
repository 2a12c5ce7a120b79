"""A real aggregator on loopback with experts of SmolLM2, and site folders for engines."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from compeft_client.exchange.package_client import PackageClient
from compeft_client.identity.edge_config import Edge
from compeft_client.identity.site_folder import write_index
from compeft_proto.clock import now_ms
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.site_layout import FILES
from compeft_server.admin import policy_admin
from compeft_server.app.server import Settings, start
from compeft_server.data_directory import open_ledger
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.ledger.ledger import Ledger


@dataclass
class Aggregator:
    """One that runs."""

    folder: Path
    address: str
    ledger: Ledger
    key: SigningKey
    publisher: SigningKey

    def push(self, name: str, file: Path) -> int:
        """Publish an expert file; its version."""
        edge = Edge(self.address, self.publisher, self.key.public, self.folder / "publisher")
        with PackageClient(edge) as client:
            return client.push(name, file.read_bytes()).version

    def promote(self, name: str, version: int) -> None:
        """Move the channel `stable`."""
        policy_admin.promote(self.ledger, name, version, "stable", now_ms())

    def site(self, name: str) -> Path:
        """The site folder of a new member who may fetch."""
        folder, key = self.folder / f"site-{name}", new_key()
        self.ledger.enrol(name, key.public, "edge", now_ms())
        folder.mkdir(mode=0o700)
        (folder / FILES["key"]).write_bytes(key.to_pem())
        (folder / FILES["key"]).chmod(0o600)
        (folder / FILES["aggregator-key"]).write_bytes(self.key.public.to_pem())
        write_index(folder, {"aggregator": self.address, "name": name})
        return folder


@contextmanager
def aggregator(folder: Path) -> Iterator[Aggregator]:
    """Serves until the block ends."""
    settings = Settings(folder / "data")
    ledger = open_ledger(settings.data)
    server, port = start(settings, ledger, now_ms)
    made = Aggregator(folder, f"127.0.0.1:{port}", ledger, own_key(settings.data), new_key())
    ledger.enrol("publisher", made.publisher.public, "edge", now_ms())
    policy_admin.rule(ledger, "allow", "*", "role:edge", policy_admin.USUAL["edge"], now_ms())
    try:
        yield made
    finally:
        server.stop(None).wait()
        ledger.close()
