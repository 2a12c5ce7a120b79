"""What happens around every gRPC call: a request id, Prometheus' usual server metrics, a log line for what nobody expected, a span.

The interceptor changes nothing of a call but its trailing metadata, where the request id is (`compeft-request-id`); every log line that
is written during the call carries it too. Metric names are those of the gRPC ecosystem, so that existing dashboards fit.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import structlog
from grpc import aio
from prometheus_client import CollectorRegistry, Counter, Histogram

from compeft_proto.errors import REQUEST_ID_KEY
from compeft_server.rpc.call_guard import Context, Handler

if TYPE_CHECKING:
    Interceptor = aio.ServerInterceptor[Any, Any]
else:  # generic to type checkers only
    Interceptor = aio.ServerInterceptor

log = structlog.get_logger()
BUCKETS = (0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0)
"""Seconds; transfers are long, commands short."""
LABELS = ("grpc_type", "grpc_service", "grpc_method")
TYPES = {(False, False): "unary", (True, False): "client_stream", (False, True): "server_stream", (True, True): "bidi_stream"}
"""(request streams, response streams) -> grpc_type."""


class Span(Protocol):
    """One call in a trace."""

    def end(self, code: str) -> None:
        """The call is over, with this gRPC status."""


class Tracer(Protocol):
    """Makes spans; tracing.py has the one that exports them."""

    def start(self, method: str, request_id: str, metadata: dict[str, str]) -> Span:
        """A span for a call that begins; `metadata` may name the caller's span."""


class CallMetrics:
    """grpc_server_*: started, handled by status code, and how long it took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._started = Counter("grpc_server_started", "Calls that began", LABELS, registry=registry)
        self._handled = Counter("grpc_server_handled", "Calls that ended, by status", (*LABELS, "grpc_code"), registry=registry)
        seconds = "How long calls took, until their last byte was handed over"
        self._seconds = Histogram("grpc_server_handling_seconds", seconds, LABELS, registry=registry, buckets=BUCKETS)

    def began(self, labels: tuple[str, str, str]) -> None:
        """A call begins. Its first failure shall be seen as a step from 0, so the count is there before it."""
        self._started.labels(*labels).inc()
        for code in ("OK", "UNKNOWN"):
            self._handled.labels(*labels, code)

    def ended(self, labels: tuple[str, str, str], code: str, seconds: float) -> None:
        """It is over."""
        self._handled.labels(*labels, code).inc()
        self._seconds.labels(*labels).observe(seconds)


class Observer(Interceptor):
    """Watches all calls of a server."""

    def __init__(self, metrics: CallMetrics, tracer: Tracer | None = None) -> None:
        self._metrics, self._tracer = metrics, tracer

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """The handler of a call, watched; unknown methods stay unknown."""
        handler = await continuation(details)
        return None if handler is None else self._watched(handler, details)

    def _watched(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler:
        _, service, method = details.method.split("/")
        labels = (TYPES[handler.kind], service, method)
        metadata = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
        behaviour = handler.stream_stream or handler.stream_unary

        async def watched(requests: Any, context: Context) -> Any:
            with self._around(labels, metadata, context):
                return await behaviour(requests, context)

        if handler.response_streaming:
            return replace(handler, stream_stream=watched)
        return replace(handler, stream_unary=watched)

    @contextmanager
    def _around(self, labels: tuple[str, str, str], metadata: dict[str, str], context: Context) -> Iterator[None]:
        request_id, started = secrets.token_hex(8), time.monotonic()
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        span = self._tracer.start(f"{labels[1]}/{labels[2]}", request_id, metadata) if self._tracer else None
        self._metrics.began(labels)
        code = "OK"
        with structlog.contextvars.bound_contextvars(request_id=request_id, method=labels[2]):
            try:
                yield
            except asyncio.CancelledError:  # the client is gone, or does not want the rest
                code = "CANCELLED"
                raise
            except BaseException:
                code = _code(context)
                raise
            finally:
                self._metrics.ended(labels, code, time.monotonic() - started)
                if span is not None:
                    span.end(code)


def _code(context: Context) -> str:
    """The name of the status that an ended call was given; UNKNOWN if it was given none."""
    given: object = context.code()
    number = given.value[0] if isinstance(given, grpc.StatusCode) else given
    return next((status.name for status in grpc.StatusCode if status.value[0] == number and number), "UNKNOWN")
