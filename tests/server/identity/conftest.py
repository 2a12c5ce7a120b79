"""A real aggregator with its own authority and its door for new members, on real ports; site folders that were really enrolled."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.identity.edge_config import edge_of
from compeft_client.identity.enrol import MemberStatus, enrol
from compeft_proto.clock import now_ms
from compeft_proto.invitation import Invitation, new_invitation
from compeft_server.app.server import Settings, start, start_enrolment
from compeft_server.data_directory import open_ledger
from compeft_server.domain.limits import Limits
from compeft_server.domain.records import Invited, Role
from compeft_server.flower.conductor import Conductor, conductor_config
from compeft_server.identity import authority_files
from compeft_server.identity import certificate_authority as ca
from compeft_server.identity.aggregator_keys import own_key, take_up
from compeft_server.identity.registrar import Registrar
from compeft_server.ledger.ledger import Ledger
from tests.rounds.conftest import grant_usual

HOUR_MS = 3_600_000


@dataclass
class House:
    """One aggregator that may be stopped and started again. `offset_ms` moves its clock."""

    folder: Path
    tls: bool = True
    offset_ms: int = 0
    exchange_port: int = 0
    servers: list[grpc.Server] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def door(self) -> str:
        return f"localhost:{self.door_port}"

    def clock(self) -> int:
        return now_ms() + self.offset_ms

    def open(self) -> None:
        self.ledger: Ledger = open_ledger(self.data)
        grant_usual(self.ledger)
        if self.tls and not authority_files.has_authority(self.data):
            authority_files.init(self.data, ["localhost", "127.0.0.1"], self.clock())
        take_up(self.data, self.clock())
        settings = Settings(self.data, port=self.exchange_port, enroll_port=0)
        exchange, self.exchange_port = start(settings, self.ledger, self.clock)
        door, self.door_port = start_enrolment(settings, self.ledger, self.exchange_port, self.clock)
        self.servers = [exchange, door]

    def close(self) -> None:
        for server in self.servers:
            server.stop(None).wait()
        self.servers = []
        self.ledger.close()

    def invite(self, name: str, role: Role = "edge", valid_ms: int = HOUR_MS) -> Invitation:
        mark = b""
        if authority_files.has_authority(self.data):
            mark = ca.fingerprint(authority_files.load(self.data).current.certificate)
        made = new_invitation(mark, self.door)
        stored = Invited(made.number.hex(), made.secret_digest, name, role, self.clock() + valid_ms)
        self.ledger.membership.invite(stored, self.clock())
        return made

    def enrol(self, name: str, role: Role = "edge") -> Path:
        """A new member's site folder."""
        enrol(self.invite(name, role), self.door, self.folder / name)
        return self.folder / name

    def try_to_enrol(self, invitation: Invitation, name: str = "somebody") -> MemberStatus:
        return enrol(invitation, self.door, self.folder / name)

    def conductor(self) -> Conductor:
        """The conductor, by its site folder, which is made at first."""
        site = self.folder / "conductor"
        return Conductor(
            conductor_config({"site": site if site.exists() else self.enrol("conductor", "conductor"), "aggregator": ""})
        )

    def registrar(self) -> Registrar:
        """One that may be asked without a connection."""
        return Registrar(self.data, own_key(self.data), self.ledger, 0, Limits(), self.clock)

    def refusals(self) -> list[str]:
        """Reasons for which nobody was let in."""
        return [e.event.detail for e in self.ledger.audit_entries() if e.event.action == "refuse to enrol"]


def client(site: Path) -> EdgeClient:
    """The client of a site folder."""
    return EdgeClient(edge_of({"site": site, "patience-s": 0.0}))


def until(ready: Callable[[], bool], limit_s: float = 10.0) -> None:
    give_up = time.monotonic() + limit_s
    while not ready() and time.monotonic() < give_up:
        time.sleep(0.02)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    made.open()
    yield made
    made.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[House]:
    """Without an authority: loopback only."""
    made = House(tmp_path, tls=False)
    made.open()
    yield made
    made.close()
