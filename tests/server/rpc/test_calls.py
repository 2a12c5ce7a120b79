"""What surrounds every gRPC call of a real aggregator: request ids, metrics, spans, log lines."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from compeft_proto import envelope as dsse
from compeft_proto.errors import ERROR_CODE_KEY, REQUEST_ID_KEY, TransferError, from_rpc
from compeft_proto.keys import new_key
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.app import tracing
from compeft_server.app.logs import configure_logs
from compeft_server.app.server import Settings, start
from compeft_server.app.tracing import CallTracer, tracer_from_environment
from compeft_server.data_directory import open_ledger
from compeft_server.rpc.call_interceptor import CallMetrics, Observer


@dataclass
class Watched:
    """A running aggregator, watched."""

    stub: rpc.ExpertExchangeStub
    registry: CollectorRegistry
    spans: InMemorySpanExporter

    def count(self, name: str, **labels: str) -> float:
        """A sample's value, once it is there: a call is counted just after its answer has left."""
        give_up = time.monotonic() + 5
        while (value := self.registry.get_sample_value(name, labels)) is None and time.monotonic() < give_up:
            time.sleep(0.01)
        return value or 0.0


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    registry, spans, provider = CollectorRegistry(), InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    ledger = open_ledger(tmp_path / "data")
    observer = Observer(CallMetrics(registry), CallTracer(provider))
    server, port = start(Settings(tmp_path / "data"), ledger, interceptors=[observer])
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Watched(rpc.ExpertExchangeStub(channel), registry, spans)
    server.stop(None).wait()
    ledger.close()
    provider.shutdown()


CONDUCT = {"grpc_type": "unary", "grpc_service": "compeft.v1.ExpertExchange", "grpc_method": "Conduct"}
SUBMIT = CONDUCT | {"grpc_type": "bidi_stream", "grpc_method": "Submit"}


def refused(call: Callable[[], Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def forged() -> Envelope:
    """A command of a key that nobody has enrolled."""
    return dsse.seal(new_key(), dsse.ROUND_OPENING, pb.RoundOpening(expert="x"))


def test_a_refused_call_brings_its_request_id_beside_its_error_code(watched: Watched) -> None:
    for call in (
        lambda: watched.stub.Conduct(forged()),
        lambda: list(watched.stub.Submit(iter([xp.SubmitRequest(envelope=forged())]))),
    ):
        trailing = dict(refused(call).trailing_metadata())  # type: ignore[attr-defined]  # a Call too
        assert trailing[ERROR_CODE_KEY] == "unknown_key"
        assert len(trailing[REQUEST_ID_KEY]) == 16


def test_calls_are_counted_by_method_and_status(watched: Watched) -> None:
    refused(lambda: watched.stub.Conduct(forged()))
    refused(lambda: watched.stub.Conduct(forged()))
    refused(lambda: list(watched.stub.Submit(iter([xp.SubmitRequest()]))))
    assert watched.count("grpc_server_started_total", **CONDUCT) == 2
    assert watched.count("grpc_server_handled_total", **CONDUCT, grpc_code="UNAUTHENTICATED") == 2
    assert watched.count("grpc_server_handled_total", **SUBMIT, grpc_code="INVALID_ARGUMENT") == 1
    assert watched.count("grpc_server_handling_seconds_count", **CONDUCT) == 2


def test_a_call_that_the_client_leaves_is_counted_as_cancelled(watched: Watched) -> None:
    leave = threading.Event()

    def requests() -> Iterator[xp.SubmitRequest]:
        leave.wait(5)
        yield from ()

    call = watched.stub.Submit(requests())
    watched.count("grpc_server_started_total", **SUBMIT)
    call.cancel()
    leave.set()
    assert watched.count("grpc_server_handled_total", **SUBMIT, grpc_code="CANCELLED") == 1


def test_a_span_names_the_call_and_continues_the_callers_trace(watched: Watched) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    error = refused(lambda: watched.stub.Conduct(forged(), metadata=(("traceparent", parent),)))
    watched.count("grpc_server_handled_total", **CONDUCT, grpc_code="UNAUTHENTICATED")
    (span,) = watched.spans.get_finished_spans()
    attributes = dict(span.attributes or {})
    assert span.name == "compeft.v1.ExpertExchange/Conduct"
    assert f"{span.context.trace_id:032x}" == parent.split("-")[1]
    assert attributes["rpc.grpc.status_code"] == "UNAUTHENTICATED"
    assert attributes["compeft.request_id"] == dict(error.trailing_metadata())[REQUEST_ID_KEY]  # type: ignore[attr-defined]


def test_a_client_names_the_request_of_a_failure_that_has_no_code() -> None:
    class Failed(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNKNOWN

        def details(self) -> str:
            return "it broke"

        def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
            return ((REQUEST_ID_KEY, "00112233aabbccdd"),)

    error = from_rpc(Failed(), "127.0.0.1:9")
    assert isinstance(error, TransferError)
    assert "request 00112233aabbccdd" in str(error)


# Logs


@pytest.fixture
def logs() -> Iterator[None]:
    """Whatever a test configures is undone."""
    import logging

    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.root.handlers, logging.root.level = handlers, level


def test_a_log_line_as_json_carries_the_request_id_that_the_client_got(
    logs: None, capsys: pytest.CaptureFixture[str], watched: Watched
) -> None:
    configure_logs("json")
    error = refused(lambda: watched.stub.Conduct(forged()))
    request_id = dict(error.trailing_metadata())[REQUEST_ID_KEY]  # type: ignore[attr-defined]
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in err.splitlines()]
    assert out == ""
    assert [(e["event"], e["code"], e["level"], e["method"]) for e in lines if e.get("request_id") == request_id] == [
        ("refused", "unknown_key", "warning", "Conduct")
    ]


def test_a_log_line_for_people_is_no_json(logs: None, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("console")
    structlog.get_logger().info("serving", address="127.0.0.1:1")
    line = capsys.readouterr().err
    assert "serving" in line
    assert "address=127.0.0.1:1" in line


# Traces


def test_there_are_no_traces_unless_the_environment_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracing.ENDPOINT, raising=False)
    assert tracer_from_environment() is None


def test_a_tracer_is_made_where_the_environment_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracing.ENDPOINT, "http://127.0.0.1:9")
    tracer = tracer_from_environment()
    assert tracer is not None
    tracer.close()
