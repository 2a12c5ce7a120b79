"""`compeft serve`: the one place that wires store, ledger, aggregator and gRPC together, and runs them until told to stop."""

import signal
import threading
from _thread import start_new_thread
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from compeft_core.errors import InputError
from compeft_core.warm import say_when_compiling, warm_readers
from compeft_proto.clock import now_ms
from compeft_proto.v1 import enrolment_pb2_grpc, exchange_pb2, exchange_pb2_grpc
from compeft_server.aggregation.aggregator import Aggregator
from compeft_server.aggregation.log_heads import LogHeads, check_own_head
from compeft_server.chunks.disk_space import keep_reserve
from compeft_server.data_directory import check_data, open_ledger, open_store
from compeft_server.domain.limits import Limits
from compeft_server.identity.aggregator_keys import earlier_keys, handovers, own_key, take_up
from compeft_server.identity.authority_files import has_authority
from compeft_server.identity.registrar import Registrar
from compeft_server.identity.tls_credentials import Tls, from_authority, from_files, server_credentials
from compeft_server.ledger.ledger import Ledger
from compeft_server.rpc.background_server import BackgroundServer, on_loop
from compeft_server.rpc.call_guard import PER_CONNECTION, CallGuard
from compeft_server.rpc.connection_guard import Connections, most_connections
from compeft_server.rpc.enrolment_servicer import MembershipService, enrolment_server
from compeft_server.rpc.exchange_servicer import ExchangeService

log = structlog.get_logger()
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MAX_MESSAGE_BYTES = 17 * 2**20
"""The largest manifest and its signature; chunks arrive in smaller messages."""
MAX_METADATA_BYTES = 16 * 2**10
HEALTH_CHECKS = 32
"""Calls over one connection beside those that are counted."""
SERVICE = exchange_pb2.DESCRIPTOR.services_by_name["ExpertExchange"].full_name


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the aggregator keeps its data, where it listens, and its caps. enroll_port: where new members come in, None for nowhere.

    TLS is that of `tls`, else that of the data directory's own authority; without either it listens on loopback only.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 0
    tls: Tls | None = None
    limits: Limits = field(default_factory=Limits)
    enroll_port: int | None = None


def start(
    settings: Settings,
    ledger: Ledger,
    clock: Callable[[], int] = now_ms,
    interceptors: "Sequence[aio.ServerInterceptor[Any, Any]]" = (),
) -> tuple[BackgroundServer, int]:
    """Listen; returns the running server and its port. Errors: InputError if the address is taken, or not loopback without TLS."""
    if settings.tls is not None and settings.enroll_port is not None:
        raise InputError("--enroll-port needs the aggregator's own authority: leave the TLS options out, after `compeft ca init`")
    key, earlier = own_key(settings.data), earlier_keys(settings.data)
    heads = LogHeads(key, ledger, earlier, settings.data)
    aggregator = Aggregator(key, open_store(settings.data), ledger, settings.limits, clock, earlier, heads)
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_concurrent_streams", PER_CONNECTION + HEALTH_CHECKS),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_allowed_incoming_connections", most_connections()),
    ]
    connections = Connections(lambda: revoked_names(ledger))
    server = BackgroundServer(options, [*interceptors, CallGuard(settings.limits.stall_s, connections)], connections)
    service = ExchangeService(aggregator, ledger, settings.limits, clock, handovers(settings.data))
    server.add(lambda made: exchange_pb2_grpc.add_ExpertExchangeServicer_to_server(service, made))
    checks = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs leave it out
    on_loop(checks.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)).result()
    server.add(lambda made: health_pb2_grpc.add_HealthServicer_to_server(checks, made))
    named = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    server.add(lambda made: reflection.enable_server_reflection(named, made))
    port = _listen(server, settings, settings.port, clock, ask_clients=True)
    membership = MembershipService(
        Registrar(settings.data, key, ledger, port, settings.limits, clock), ThreadPoolExecutor(2, "membership")
    )
    server.add(lambda made: enrolment_pb2_grpc.add_MembershipServicer_to_server(membership, made))
    server.start()
    return server, port


def keep_head(data: Path, ledger: Ledger) -> None:
    """Write the newest head of the audit log beside the ledger."""
    heads = LogHeads(own_key(data), ledger, earlier_keys(data), data)
    heads.since(0)
    heads.close()


def revoked_names(ledger: Ledger) -> frozenset[str]:
    """The names of members all of whose keys are revoked."""
    members = ledger.members()
    return frozenset(m.name for m in members) - {m.name for m in members if not m.revoked}


def start_enrolment(
    settings: Settings, ledger: Ledger, exchange_port: int, clock: Callable[[], int] = now_ms
) -> tuple[BackgroundServer, int]:
    """Let new members in at `enroll_port`; the running server and its port. Errors: InputError, as `start`."""
    server = enrolment_server(Registrar(settings.data, own_key(settings.data), ledger, exchange_port, settings.limits, clock))
    port = _listen(server, settings, settings.enroll_port or 0, clock, ask_clients=False)
    server.start()
    return server, port


def _listen(server: BackgroundServer, settings: Settings, port: int, clock: Callable[[], int], *, ask_clients: bool) -> int:
    """Bind a port with the TLS there is."""
    tls, address = settings.tls, f"{settings.host}:{port}"
    try:
        if tls is not None:
            return server.add_secure_port(address, server_credentials(lambda: from_files(tls), ask_clients=ask_clients))
        if has_authority(settings.data):
            shown = lambda: from_authority(settings.data, clock())  # noqa: E731
            return server.add_secure_port(address, server_credentials(shown, ask_clients=ask_clients))
        if settings.host not in LOOPBACK:
            raise InputError(
                f"listening on {settings.host} needs TLS: run `compeft ca init`, or give --tls-cert, --tls-key and --tls-client-ca"
            )
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise InputError(f"cannot listen on {address}: is another aggregator running there?") from error


Beside = Callable[[Ledger], AbstractContextManager[object]]
"""What runs beside the aggregator as long as it serves, over the same ledger: the live page."""


def serve(
    settings: Settings,
    on_ready: Callable[[int, int | None], None],
    grace_s: float = 5.0,
    interceptors: "Sequence[aio.ServerInterceptor[Any, Any]]" = (),
    beside: Beside = lambda _: nullcontext(),
) -> None:
    """Serve until SIGTERM or SIGINT; calls in progress get `grace_s` seconds to end. A waiting key of the aggregator is taken up first."""
    stop = threading.Event()
    say_when_compiling(lambda: log.info("compiling kernels once"))
    warming = threading.Thread(target=warm_readers, daemon=True)
    warming.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: start_new_thread(stop.set, ()))  # `set` takes a lock that we may hold just now
    check_data(settings.data)
    ledger = open_ledger(settings.data)
    check_own_head(settings.data, ledger, (own_key(settings.data).public, *earlier_keys(settings.data)))
    keep_head(settings.data, ledger)
    keep_reserve(settings.data)
    if (taken_up := take_up(settings.data, now_ms())) is not None:
        ledger.membership.note("take up key", "aggregator", now_ms(), keyid=taken_up.keyid)
    with beside(ledger):  # before the exchange listens: whoever can call it finds the page too
        warming.join()
        server, port = start(settings, ledger, interceptors=interceptors)
        door, door_port = start_enrolment(settings, ledger, port) if settings.enroll_port is not None else (None, None)
        log.info("serving", address=f"{settings.host}:{port}", data=str(settings.data), enroll_port=door_port)
        on_ready(port, door_port)
        stop.wait()
        if door is not None:
            door.stop(None).wait()
        server.stop(grace_s).wait()
    keep_head(settings.data, ledger)
    ledger.close()
    log.info("stopped")
