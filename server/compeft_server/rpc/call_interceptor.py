"""What happens around every gRPC call: a request id, Prometheus' usual server metrics, a log line for what nobody expected, a span.

The interceptor changes nothing of a call but its trailing metadata, where the request id is (`compeft-request-id`); every log line that
is written during the call carries it too. Metric names are those of the gRPC ecosystem, so that existing dashboards fit.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram

from compeft_proto.errors import REQUEST_ID_KEY

if TYPE_CHECKING:
    Interceptor = grpc.ServerInterceptor[Any, Any]
    Method = grpc.RpcMethodHandler[Any, Any]
else:  # generic to type checkers only
    Interceptor, Method = grpc.ServerInterceptor, grpc.RpcMethodHandler

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

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Method | None], details: grpc.HandlerCallDetails
    ) -> Method | None:
        """The handler of a call, watched; unknown methods stay unknown."""
        handler = continuation(details)
        return None if handler is None else _replaced(handler, self._watched(handler, details))

    def _watched(self, handler: Any, details: grpc.HandlerCallDetails) -> Callable[[Any, grpc.ServicerContext], Any]:
        _, service, method = details.method.split("/")
        labels = (TYPES[handler.request_streaming, handler.response_streaming], service, method)
        metadata = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
        behaviour = _behaviour(handler)

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._around(labels, metadata, context):
                yield from behaviour(request, context)

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            with self._around(labels, metadata, context):
                return behaviour(request, context)

        return stream if handler.response_streaming else unary

    @contextmanager
    def _around(self, labels: tuple[str, str, str], metadata: dict[str, str], context: grpc.ServicerContext) -> Iterator[None]:
        request_id, started = secrets.token_hex(8), time.monotonic()
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        span = self._tracer.start(f"{labels[1]}/{labels[2]}", request_id, metadata) if self._tracer else None
        self._metrics.began(labels)
        code = "OK"
        with structlog.contextvars.bound_contextvars(request_id=request_id, method=labels[2]):
            try:
                yield
            except GeneratorExit:  # the client is gone, or does not want the rest
                code = "CANCELLED"
                raise
            except BaseException as error:
                code = _code(context)
                if code == "UNKNOWN":
                    log.error("call failed", error=repr(error), exc_info=True)
                raise
            finally:
                code = code if context.is_active() or code != "OK" else "CANCELLED"
                self._metrics.ended(labels, code, time.monotonic() - started)
                if span is not None:
                    span.end(code)


def _behaviour(handler: Any) -> Any:
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def _replaced(handler: Any, behaviour: Callable[[Any, grpc.ServicerContext], Any]) -> Method:
    kinds = {
        "unary": grpc.unary_unary_rpc_method_handler,
        "client_stream": grpc.stream_unary_rpc_method_handler,
        "server_stream": grpc.unary_stream_rpc_method_handler,
        "bidi_stream": grpc.stream_stream_rpc_method_handler,
    }
    make = kinds[TYPES[handler.request_streaming, handler.response_streaming]]
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _code(context: Any) -> str:
    """The status that an ended call was given; UNKNOWN if it was given none."""
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
