"""`compeft serve`: the one place that wires store, ledger, aggregator and gRPC together, and runs them until told to stop."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from compeft_core.errors import InputError
from compeft_proto.keys import SigningKey, new_key, signing_key_from_pem
from compeft_proto.v1 import exchange_pb2, exchange_pb2_grpc
from compeft_server.admission import Limits
from compeft_server.aggregator import Aggregator
from compeft_server.ledger import Ledger
from compeft_server.service import ExchangeService
from compeft_server.store import ChunkStore

log = structlog.get_logger()
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MAX_MESSAGE_BYTES = 17 * 2**20
"""The largest manifest and its signature; chunks arrive in smaller messages."""
SPARE_WORKERS = 32
"""Threads beyond those of open transfers: for commands, health, and calls that are about to be told to wait."""
SERVICE = exchange_pb2.DESCRIPTOR.services_by_name["ExpertExchange"].full_name
KEY_FILE, LEDGER_FILE = "aggregator.key", "ledger.sqlite"


@dataclass(frozen=True, slots=True)
class Tls:
    """Mutual TLS: PEM files of the server's certificate and key, and of the authority that signed the clients' certificates."""

    certificate: Path
    key: Path
    client_authority: Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the aggregator keeps its data, where it listens, and its caps. Without TLS it listens on loopback only."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 0
    tls: Tls | None = None
    limits: Limits = field(default_factory=Limits)


def now_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def open_ledger(data: Path) -> Ledger:
    """The ledger in an aggregator's data directory, which is made if absent."""
    data.mkdir(parents=True, exist_ok=True)
    return Ledger(data / LEDGER_FILE)


def own_key(data: Path) -> SigningKey:
    """The aggregator's key, made on first use with mode 0600; its public half lies beside it. Errors: ForbiddenError, InputError."""
    path = data / KEY_FILE
    if not path.exists():
        data.mkdir(parents=True, exist_ok=True)
        key = new_key()
        path.touch(mode=0o600)
        path.write_bytes(key.to_pem())
    key = signing_key_from_pem(path.read_bytes(), str(path), path.stat().st_mode)
    path.with_suffix(".pub").write_bytes(key.public.to_pem())
    return key


def start(settings: Settings, ledger: Ledger, clock: Callable[[], int] = now_ms) -> tuple[grpc.Server, int]:
    """Listen; returns the running server and its port. Errors: InputError if the address is taken, or not loopback without TLS."""
    if settings.tls is None and settings.host not in LOOPBACK:
        raise InputError(f"listening on {settings.host} needs TLS: give --tls-cert, --tls-key and --tls-client-ca")
    aggregator = Aggregator(own_key(settings.data), ChunkStore(settings.data), ledger, settings.limits, clock)
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
    server = grpc.server(
        ThreadPoolExecutor(settings.limits.max_calls + SPARE_WORKERS), options=options, compression=grpc.Compression.NoCompression
    )
    exchange_pb2_grpc.add_ExpertExchangeServicer_to_server(ExchangeService(aggregator, ledger, settings.limits, clock), server)
    checks = health.HealthServicer()
    checks.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        port = _listen(server, f"{settings.host}:{settings.port}", settings.tls)
    except RuntimeError as error:
        raise InputError(f"cannot listen on {settings.host}:{settings.port}: is another aggregator running there?") from error
    server.start()
    return server, port


def _listen(server: grpc.Server, address: str, tls: Tls | None) -> int:
    if tls is None:
        return server.add_insecure_port(address)
    pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
    authority = tls.client_authority.read_bytes()
    return server.add_secure_port(address, grpc.ssl_server_credentials([pair], authority, require_client_auth=True))


def serve(settings: Settings, on_ready: Callable[[int], None], grace_s: float = 5.0) -> None:
    """Serve until SIGTERM or SIGINT; calls in progress get `grace_s` seconds to end."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ledger = open_ledger(settings.data)
    server, port = start(settings, ledger)
    log.info("serving", address=f"{settings.host}:{port}", data=str(settings.data))
    on_ready(port)
    stop.wait()
    server.stop(grace_s).wait()
    ledger.close()
    log.info("stopped")
