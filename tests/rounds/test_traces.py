"""One trace of a round across conductor, client and aggregator, received over OTLP by a real gRPC server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_rpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from compeft_proto import tracing
from tests.rounds.conftest import World

ROOT = Path(__file__).parents[2]


class Receiver(otlp_rpc.TraceServiceServicer):  # type: ignore[misc]  # generated without types
    """Keeps every span that arrives, by the service that sent it."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []

    def Export(self, request: otlp.ExportTraceServiceRequest, context: object) -> otlp.ExportTraceServiceResponse:  # noqa: N802
        for sent in request.resource_spans:
            (service,) = (a.value.string_value for a in sent.resource.attributes if a.key == "service.name")
            self.spans += [(service, span) for scope in sent.scope_spans for span in scope.spans]
        return otlp.ExportTraceServiceResponse()


@contextmanager
def receiving() -> Iterator[tuple[Receiver, str]]:
    """An OTLP receiver on a port of its own, and its address."""
    receiver, server = Receiver(), grpc.server(ThreadPoolExecutor(4))
    otlp_rpc.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield receiver, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def run_round(folder: Path, endpoint: str) -> None:
    """A round in a process of its own, which has its conductor, its clients and an aggregator, each with a service name."""
    environment = os.environ | {tracing.ENDPOINT: endpoint, "OTEL_EXPORTER_OTLP_INSECURE": "true"}
    command = [sys.executable, "-m", "tests.rounds.traced_run", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.timeout(120)
def test_one_round_is_one_trace_across_conductor_clients_and_aggregator(tmp_path: Path) -> None:
    with receiving() as (receiver, endpoint):
        run_round(tmp_path, endpoint)
    by_id = {span.span_id: span for _, span in receiver.spans}
    roots = [span for _, span in receiver.spans if span.name == "round"]
    assert len(roots) == 2
    for root in roots:
        of_round = [(service, span) for service, span in receiver.spans if span.trace_id == root.trace_id]
        names = sorted(span.name for _, span in of_round if "/" not in span.name)
        assert names == ["client evaluate"] * 2 + ["client train"] * 2 + ["close round", "report round", "round"]
        calls = {span.name for service, span in of_round if service == "compeft-aggregator"}
        assert calls == {f"compeft.v1.ExpertExchange/{name}" for name in ("Conduct", "Sync", "Submit")}
        for service, span in of_round:
            assert (span.parent_span_id == b"") == (span is root)
            assert span is root or span.parent_span_id in by_id
            if service == "compeft-aggregator":
                assert by_id[span.parent_span_id].name == span.name
                assert by_id[span.parent_span_id].kind == Span.SPAN_KIND_CLIENT
        syncs = [span for service, span in of_round if span.name.endswith("/Sync") and service == "compeft-aggregator"]
        parents = {by_id[by_id[span.parent_span_id].parent_span_id].name for span in syncs}
        assert {"client train", "client evaluate"} <= parents


def test_without_an_endpoint_nothing_is_traced_and_nothing_travels(world: World) -> None:
    assert not tracing.start_tracing("compeft-client", {})
    assert not tracing.active()
    with tracing.span("round", round=1) as carried:
        assert carried == ""
    with tracing.span("client train", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01") as carried:
        assert carried.startswith("00-0af7651916cd43dd8448eb211c80319c")
    channel = grpc.insecure_channel(world.address)
    assert tracing.traced(channel) is channel
    channel.close()
