"""Traces by OpenTelemetry, where the operator asks for them by OTEL_EXPORTER_OTLP_ENDPOINT; nothing otherwise.

The packages are an extra (`compeft[otel]`). Every call becomes a span, child of the caller's if it sent a `traceparent`; everything
else (names, sampling, headers) is set by OpenTelemetry's own environment variables.
"""

import os
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
log = structlog.get_logger()


class CallSpan:
    """One call in a trace."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def end(self, code: str) -> None:
        """The call is over, with this gRPC status."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("rpc.grpc.status_code", code)
        if code in SERVER_ERRORS:
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._span.end()


SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Statuses that OpenTelemetry's conventions count as the server's failure; a refusal is not one."""


class CallTracer:
    """Makes a span for each call."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("compeft")

    def start(self, method: str, request_id: str, metadata: dict[str, str]) -> CallSpan:
        """A span for a call that begins; `metadata` may name the caller's span."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        service, _, name = method.rpartition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name, "compeft.request_id": request_id}
        parent = TraceContextTextMapPropagator().extract(metadata)
        return CallSpan(self._tracer.start_span(method, parent, SpanKind.SERVER, attributes))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def tracer_from_environment() -> CallTracer | None:
    """The tracer that the environment asks for, None if it asks for none, or the packages are not installed (that is logged)."""
    if not os.environ.get(ENDPOINT):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        log.warning("no traces", because=f"{ENDPOINT} is set but {error.name} is not installed: pip install 'compeft[otel]'")
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", "compeft-aggregator")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return CallTracer(provider)
