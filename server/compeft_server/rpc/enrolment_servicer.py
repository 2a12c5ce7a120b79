"""The two gRPC services of identity: Enrolment on its own port, without client certificates; Membership beside the exchange.

No rule lives here. The port of Enrolment serves nothing else, takes small messages and few calls at once.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, TypeVar

import grpc
import structlog

from compeft_core.errors import CompeftError
from compeft_proto.errors import ERROR_CODE_KEY, STATUS
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_proto.v1 import enrolment_pb2_grpc as rpc
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.identity.registrar import Registrar

T = TypeVar("T")
log = structlog.get_logger()
MAX_MESSAGE_BYTES = 16 * 2**10
"""An invitation, a key, a certificate request and their signature are a tenth of it."""
WORKERS, MAX_CALLS = 8, 16
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.so_reuseport", 0),
]


class EnrolmentService(rpc.EnrolmentServicer):
    """Enrolment over a Registrar."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar

    def ShowAuthority(self, request: ep.AuthorityRequest, context: grpc.ServicerContext) -> ep.AuthorityReply:  # noqa: N802
        """The authorities' certificates."""
        return _answer(context, lambda: ep.AuthorityReply(certificates=self._registrar.authorities()))

    def Enrol(self, request: ep.Introduction, context: grpc.ServicerContext) -> ep.Introduction:  # noqa: N802
        """The bearer of an invitation becomes a member."""
        return _answer(context, lambda: self._registrar.enrol(request, _host(context.peer())))


class MembershipService(rpc.MembershipServicer):
    """Membership over a Registrar."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar

    def Renew(self, request: Envelope, context: grpc.ServicerContext) -> Envelope:  # noqa: N802  # gRPC's name
        """A member's new certificate, or key."""
        return _answer(context, lambda: self._registrar.renew(request))

    def ListHandovers(self, request: ep.HandoversRequest, context: grpc.ServicerContext) -> ep.Handovers:  # noqa: N802
        """Every change of the aggregator's key."""
        return _answer(context, self._registrar.handovers)


def enrolment_server(registrar: Registrar) -> grpc.Server:
    """A server with Enrolment and nothing else, not yet listening."""
    server = grpc.server(ThreadPoolExecutor(WORKERS), options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
    rpc.add_EnrolmentServicer_to_server(EnrolmentService(registrar), server)
    return server


def _answer(context: grpc.ServicerContext, work: Callable[[], T]) -> T:
    try:
        return work()
    except CompeftError as error:
        _abort(context, error)


def _abort(context: grpc.ServicerContext, error: CompeftError) -> NoReturn:
    log.warning("refused", peer=context.peer(), code=error.code, reason=str(error))
    context.set_trailing_metadata(((ERROR_CODE_KEY, error.code),))
    context.abort(STATUS[type(error)], str(error))


def _host(peer: str) -> str:
    """The host of a gRPC peer such as `ipv4:192.0.2.7:40312`."""
    return peer.rpartition(":")[0]
