"""The two gRPC services of identity: Enrolment on its own port, without client certificates; Membership beside the exchange.

No rule lives here. The port of Enrolment serves nothing else, and takes small messages.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from compeft_core.errors import CompeftError
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_proto.v1 import enrolment_pb2_grpc as rpc
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.identity.registrar import Registrar
from compeft_server.rpc.background_server import BackgroundServer, in_pool
from compeft_server.rpc.call_guard import CallGuard, Context, refuse
from compeft_server.rpc.connection_guard import Connections

T = TypeVar("T")
MAX_MESSAGE_BYTES = 16 * 2**10
"""An invitation, a key, a certificate request and their signature are a tenth of it."""
WORKERS, STALL_S = 4, 10.0
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.so_reuseport", 0),
]


class EnrolmentService(rpc.EnrolmentServicer):
    """Enrolment over a Registrar, whose work is done in `pool`."""

    def __init__(self, registrar: Registrar, pool: ThreadPoolExecutor) -> None:
        self._registrar, self._pool = registrar, pool

    async def ShowAuthority(self, request: ep.AuthorityRequest, context: Context) -> ep.AuthorityReply:  # noqa: N802
        """The authorities' certificates."""
        return await _answer(context, self._pool, lambda: ep.AuthorityReply(certificates=self._registrar.authorities()))

    async def Enrol(self, request: ep.Introduction, context: Context) -> ep.Introduction:  # noqa: N802
        """The bearer of an invitation becomes a member."""
        return await _answer(context, self._pool, lambda: self._registrar.enrol(request, host_of(context.peer())))


class MembershipService(rpc.MembershipServicer):
    """Membership over a Registrar, whose work is done in `pool`."""

    def __init__(self, registrar: Registrar, pool: ThreadPoolExecutor) -> None:
        self._registrar, self._pool = registrar, pool

    async def Renew(self, request: Envelope, context: Context) -> Envelope:  # noqa: N802  # gRPC's name
        """A member's new certificate, or key."""
        return await _answer(context, self._pool, lambda: self._registrar.renew(request))

    async def ListHandovers(self, request: ep.HandoversRequest, context: Context) -> ep.Handovers:  # noqa: N802
        """Every change of the aggregator's key."""
        return await _answer(context, self._pool, self._registrar.handovers)


def enrolment_server(registrar: Registrar) -> BackgroundServer:
    """A server with Enrolment and nothing else, not yet listening."""
    connections = Connections()
    server = BackgroundServer(OPTIONS, [CallGuard(STALL_S, connections)], connections)
    service = EnrolmentService(registrar, ThreadPoolExecutor(WORKERS, "enrolment"))
    server.add(lambda made: rpc.add_EnrolmentServicer_to_server(service, made))
    return server


async def _answer(context: Context, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    try:
        return await in_pool(pool, work)
    except CompeftError as error:
        await refuse(context, error)


def host_of(peer: str) -> str:
    """The host of a gRPC peer such as `ipv4:192.0.2.7:40312`."""
    return peer.rpartition(":")[0]
