"""Spans of a round by OpenTelemetry, for conductors and clients: nothing unless the packages are there and somebody asks for traces.

    start_tracing("compeft-client", os.environ)        # exports where OTEL_EXPORTER_OTLP_ENDPOINT says, if it says so
    with span("train", carried, round=3):              # child of the span that `carried` names
        ...                                            # every call of `traced(channel)` is a child, and carries the context on

The context travels as `traceparent` (W3C Trace Context): in gRPC metadata, and beside the task in Flower's message. It says nothing but
two random numbers. An app that has set up a tracer provider of its own keeps it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

log = logging.getLogger(__name__)
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACEPARENT = "traceparent"
MAX_TRACEPARENT = 64
FLUSH_MS = 2000
NAME = "compeft"


def start_tracing(service: str, environment: Mapping[str, str]) -> bool:
    """Export spans of this process if `environment` names an endpoint and `compeft[otel]` is installed; whether so. Only once."""
    if not environment.get(ENDPOINT):
        return False
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        log.warning("no traces: %s is set but %s is not installed: pip install 'compeft[otel]'", ENDPOINT, error.name)
        return False
    if not active():
        name = environment.get("OTEL_SERVICE_NAME", service)
        provider = TracerProvider(resource=Resource.create({"service.name": name}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
    return True


def active() -> bool:
    """Whether spans of this process go anywhere."""
    try:
        from opentelemetry import trace
    except ModuleNotFoundError:
        return False
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@contextmanager
def span(name: str, carried: str = "", **attributes: str | int) -> Iterator[str]:
    """A span that is current inside, child of the one that `carried` names or of the current one; gives its own `traceparent`, or the
    `carried` one where nothing is traced.
    """
    if not active():
        yield carried
        return
    from opentelemetry import trace

    values = {f"{NAME}.{key}": value for key, value in attributes.items()}
    with trace.get_tracer(NAME).start_as_current_span(name, _context(carried), attributes=values):
        yield current()


def current() -> str:
    """The `traceparent` of the current span; empty without one."""
    if not active():
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(TRACEPARENT, "")


def flush() -> None:
    """Send what has not been sent, within FLUSH_MS: a process that Flower started may end at any time after its reply."""
    if active():
        from opentelemetry import trace

        getattr(trace.get_tracer_provider(), "force_flush", lambda _: True)(FLUSH_MS)


def traced(channel: grpc.Channel) -> grpc.Channel:
    """The channel, whose calls are spans where spans go anywhere."""
    return grpc.intercept_channel(channel, _Traced()) if active() else channel


def _context(carried: str) -> Any:
    """The context of a `traceparent`; None, which is the current one, where it is empty or too long."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    known = 0 < len(carried) <= MAX_TRACEPARENT
    return TraceContextTextMapPropagator().extract({TRACEPARENT: carried}) if known else None


class _Details(grpc.ClientCallDetails):
    """A call's details with other metadata."""

    def __init__(self, before: Any, metadata: Any) -> None:
        for name in ("method", "timeout", "credentials", "wait_for_ready", "compression"):
            setattr(self, name, getattr(before, name, None))
        self.metadata = metadata


class _Traced(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):  # type: ignore[type-arg]  # generic in stubs only
    """Makes a span for each call, and sends its context along."""

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """One request, one answer."""
        return self._call(continuation, details, request)

    def intercept_stream_stream(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        """A dialogue."""
        return self._call(continuation, details, requests)

    def _call(self, continuation: Callable[..., Any], details: Any, sent: Any) -> Any:
        from opentelemetry import trace
        from opentelemetry.trace import SpanKind

        method = details.method if isinstance(details.method, str) else details.method.decode()
        made = trace.get_tracer(NAME).start_span(method.lstrip("/"), kind=SpanKind.CLIENT, attributes={"rpc.system": "grpc"})
        with trace.use_span(made):
            metadata = [*(details.metadata or ()), (TRACEPARENT, current())]
        call = continuation(_Details(details, metadata), sent)
        call.add_done_callback(lambda done: _end(made, done))
        return call


def _end(made: Any, done: Any) -> None:
    code = done.code()
    made.set_attribute("rpc.grpc.status_code", code.name if code is not None else "OK")
    made.end()
