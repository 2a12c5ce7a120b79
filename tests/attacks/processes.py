"""Real `compeft` processes on loopback: servers with an authority of their own, members who enrol, and calls made by hand."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.serialization import Encoding

from compeft_client.identity.edge_config import edge_of
from compeft_client.identity.enrol import enrol
from compeft_proto import envelope as dsse
from compeft_proto.clock import now_ms
from compeft_proto.errors import BusyError
from compeft_proto.invitation import new_invitation
from compeft_proto.keys import SigningKey
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.data_directory import open_ledger
from compeft_server.domain.records import Invited, Role
from compeft_server.flower.conductor import Conductor, conductor_config
from compeft_server.identity import authority_files
from compeft_server.identity import certificate_authority as ca
from tests.rounds.conftest import EXPERT, genesis, grant_usual

PROGRAM = Path(sys.executable).parent / "compeft"


def compeft(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """One command of the product."""
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=120, **more)  # type: ignore[call-overload, no-any-return]


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@dataclass
class Site:
    """One running `compeft serve` with TLS and a port for enrolment, and an expert published."""

    folder: Path
    port: int
    door: int
    process: subprocess.Popen[bytes]

    @property
    def data(self) -> Path:
        """Its data directory."""
        return self.folder / "data"

    def member(self, name: str, role: Role = "edge") -> Path:
        """The site folder of a new member, by real enrolment."""
        target = self.folder / f"site-{name}"
        mark = ca.fingerprint(authority_files.load(self.data).current.certificate)
        made, ledger = new_invitation(mark, f"localhost:{self.door}"), open_ledger(self.data)
        ledger.membership.invite(Invited(made.number.hex(), made.secret_digest, name, role, now_ms() + 3_600_000), now_ms())
        ledger.close()
        for _ in range(30):  # ten attempts a minute are heard
            with suppress(BusyError):
                enrol(made, f"localhost:{self.door}", target)
                return target
            time.sleep(3)
        raise TimeoutError(f"{name} is not heard at the enrolment port")

    def channel(self, site: Path) -> grpc.Channel:
        """A connection of its own with this member's certificate."""
        tls = edge_of({"site": site}).tls
        assert tls is not None
        credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
        return grpc.secure_channel(f"localhost:{self.port}", credentials, [("grpc.use_local_subchannel_pool", 1)])

    def descriptors(self) -> int:
        """How many the server has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def threads(self) -> int:
        """How many the server has."""
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def authority(self) -> bytes:
        """The certificate that clients believe."""
        return authority_files.load(self.data).current.certificate.public_bytes(Encoding.PEM)


@contextmanager
def serving(folder: Path, descriptors: int | None = None) -> Iterator[Site]:
    """A running aggregator, as a process; at most `descriptors` open files."""
    data = folder / "data"
    data.mkdir(mode=0o700)
    authority_files.init(data, ["localhost", "127.0.0.1"], now_ms())
    ledger = open_ledger(data)
    grant_usual(ledger)
    ledger.close()
    port, door = free_port(), free_port()
    command = f"exec {PROGRAM} serve --data {data} --port {port} --enroll-port {door} --log-format json"
    limit = f"ulimit -n {descriptors}; " if descriptors else ""
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(["bash", "-c", limit + command], stdout=log, stderr=log)
    site = Site(folder, port, door, process)
    try:
        _wait(site)
        Conductor(conductor_config({"site": site.member("conductor", "conductor")})).publish(genesis())
        yield site
    finally:
        process.terminate()
        process.wait(30)


def _wait(site: Site) -> None:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        try:
            socket.create_connection(("127.0.0.1", site.door), 1).close()
            return
        except OSError:
            assert site.process.poll() is None, (site.folder / "serve.log").read_text()
            time.sleep(0.1)
    raise TimeoutError("the server does not listen")


def key_of(site: Path) -> SigningKey:
    """A member's signing key."""
    return edge_of({"site": site}).key


def sealed_sync(key: SigningKey, expert: str = EXPERT) -> xp.SyncCall:
    """What a client asks first."""
    request = pb.SyncRequest(expert=expert, keyid=key.keyid, nonce=secrets.token_bytes(16), issued_at_ms=now_ms())
    return xp.SyncCall(envelope=dsse.seal(key, dsse.SYNC_REQUEST, request))


def sync(channel: grpc.Channel, key: SigningKey, expert: str = EXPERT, timeout: float = 30) -> list[xp.SyncReply]:
    """One whole sync without its chunks. Errors: grpc.RpcError."""
    return list(rpc.ExpertExchangeStub(channel).Sync(iter([sealed_sync(key, expert)]), timeout=timeout))


def code_of(error: grpc.RpcError) -> str:
    """The product's own code of a refusal, else the status' name."""
    call: grpc.Call = error  # type: ignore[assignment]  # every RpcError of a call is also a Call
    return str(dict(call.trailing_metadata() or ()).get("compeft-error-code", call.code().name))
