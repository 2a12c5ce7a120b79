"""A real pool reports what it holds and does to a real aggregator, and every face of the report shows what it measured."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from compeft_client import PoolUsage, report_pool, reporting
from compeft_client.cli.main import run
from compeft_client.exchange.connections import connected
from compeft_client.exchange.pool_reports import ResidentFile
from compeft_client.identity.edge_config import Edge
from compeft_core.errors import CompeftError
from compeft_proto import envelope as dsse
from compeft_proto.clock import now_ms
from compeft_proto.keys import SigningKey
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.dashboard.attention import alerts
from compeft_server.domain.pools import MAX_EXPERTS
from compeft_server.ledger.pools import HOUR_MS
from compeft_server.reports.formats.text import human_bytes
from tests.client.delivery.test_push import publisher
from tests.client.models.test_pool import files, model, pool_of
from tests.rounds.conftest import World, synced_by, trained
from tests.server.dashboard.conftest import Served, serving
from tests.server.dashboard.test_pages import text_of

__all__ = ["files", "serving"]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
USAGE = PoolUsage("vllm", "NVIDIA H200", 5, 9, (ResidentFile("a", b"a" * 32, 100),), 5000, 1000, 7, 4, 3, 0.5, 0.25, 10**9)


def site(world: World, name: str = "berlin") -> Edge:
    """A member of the aggregator."""
    return Edge(world.address, world.enrol(name), world.aggregator.public, world.folder / f"state-{name}", patience_s=0)


def report(key: SigningKey, **changed: Any) -> pb.PoolReport:
    """A report that would be taken, but for what is changed."""
    fields: dict[str, Any] = {
        "keyid": key.keyid,
        "nonce": b"n" * 16,
        "issued_at_ms": now_ms(),
        "pool": "default",
        "engine": "vllm",
        "device": "H200",
        "switches": 3,
    }
    return pb.PoolReport(**fields | changed)


def test_a_pool_counts_what_it_does(files: dict[str, Path]) -> None:
    with pool_of(model(), files) as pool:
        fresh = pool.usage()
        assert (fresh.known, fresh.experts, fresh.switches, fresh.hits, fresh.misses) == (3, (), 0, 0, 0)
        for name in ("berlin", "berlin", "paris", "berlin"):
            pool.activate(name)
        used = pool.usage()
    assert (used.switches, used.hits, used.misses) == (3, 1, 2)
    assert [e.name for e in used.experts] == ["paris", "berlin"]
    assert sum(e.held_bytes for e in used.experts) < used.dense_bf16_bytes
    assert 0 < used.decode_seconds < used.switch_seconds
    assert used.device == "cpu"
    assert used.device_memory_bytes == 0


def test_what_a_pool_did_is_in_every_face_of_the_report(
    world: World, files: dict[str, Path], capsys: pytest.CaptureFixture[str], serving: Callable[..., Served]
) -> None:
    edge = site(world)
    with pool_of(model(), files) as pool, reporting(edge, pool.usage, every_s=600):
        pool.activate("berlin")
        pool.activate("paris")
        usage = pool.usage()
    (kept,) = world.ledger.pools.newest()
    assert (kept.keyid, kept.switches, kept.misses, kept.resident, kept.known) == (edge.key.keyid, 2, 2, 2, 3)
    assert [(e.name, e.sha256) for e in kept.experts] == [(e.name, e.sha256.hex()) for e in usage.experts]
    data, said = str(world.folder / "data"), {}
    for kind in ("json", "html", "md", "text"):
        assert run(["report", "--data", data, "--format", kind]) == 0
        said[kind] = capsys.readouterr().out
    (stated,) = json.loads(said["json"])["pools"]
    assert stated["member"] == "berlin"
    assert stated["resident_bytes"] == kept.resident_bytes == sum(e.held_bytes for e in usage.experts)
    size, dense = human_bytes(stated["resident_bytes"]), human_bytes(stated["dense_bf16_bytes"])
    assert "<td>2 of 3</td>" in said["html"].replace(' data-label="experts in memory"', "")
    assert all(size in said[kind] and dense in said[kind] for kind in ("html", "md", "text"))
    page = serving(world.folder / "data")
    assert f"2 of 3 {size} {dense} 2 0 %" in text_of(page, f"/client?keyid={edge.key.keyid}")
    metrics = httpx.get(page.url + "/metrics").text
    for name in ("resident_bytes", "dense_bf16_bytes", "switches"):
        assert f"compeft_pool_{name} {float(stated[name])}" in metrics


def test_a_report_takes_the_place_of_the_one_before_it_in_its_hour(world: World) -> None:
    edge = site(world)
    for switches in (7, 8):
        report_pool(edge, replace(USAGE, switches=switches))
    report_pool(edge, USAGE, "other")
    assert [(p.pool, p.switches) for p in world.ledger.pools.newest()] == [("default", 8), ("other", 7)]
    world.offset_ms[0] = 0
    (newest, _) = world.ledger.pools.newest()
    world.ledger.pools.record(replace(newest, at_ms=newest.at_ms + HOUR_MS, switches=20))
    assert [p.switches for p in world.ledger.pools.newest()] == [20, 7]


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"keyid": "0" * 32}, "forbidden"),
        ({"issued_at_ms": 5}, "expired"),
        ({"pool": ""}, "malformed"),
        ({"device": "x" * 129}, "malformed"),
        ({"engine": "a\x00b"}, "malformed"),
        ({"switch_seconds": float("nan")}, "not_finite"),
        ({"decode_seconds": -1.0}, "not_finite"),
        ({"hits": 2**63}, "malformed"),
        ({"experts": [pb.ResidentExpert(name="x", sha256=b"short")]}, "malformed"),
        ({"experts": [pb.ResidentExpert(name="x", sha256=b"d" * 32)] * (MAX_EXPERTS + 1)}, "limit"),
    ],
)
def test_a_report_that_cannot_be_is_refused_and_nothing_is_kept(world: World, changed: dict[str, Any], code: str) -> None:
    edge = site(world)
    connection = connected(edge)
    with pytest.raises(CompeftError) as refused:
        connection.observe(dsse.seal(edge.key, dsse.POOL_REPORT, report(edge.key, **changed)), dsse.RECORDED)
    assert code in f"{refused.value.code} {refused.value}"
    assert world.ledger.pools.newest() == []
    connection.close()


def test_a_stranger_and_another_kind_of_message_are_refused(world: World) -> None:
    edge = site(world)
    connection = connected(edge)
    for key, kind in ((world.conductor_key, dsse.POOL_REPORT), (edge.key, dsse.QUALITY)):
        message: Any = report(key) if kind is dsse.POOL_REPORT else pb.QualityReport(keyid=key.keyid)
        with pytest.raises(CompeftError):
            connection.observe(dsse.seal(key, kind, message), dsse.RECORDED)
    assert world.ledger.pools.newest() == []
    connection.close()


def test_training_is_what_signed_updates_say_of_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    task = world.open_round()
    for number, (seconds, gpu) in enumerate([(2.0, 0), (4.0, 3 * 10**9)]):
        with world.edge(f"edge-{number}") as client:
            synced_by(client, task)
            metrics = {"train-seconds": seconds, "peak-gpu-bytes": gpu, "peak-memory-bytes": 10**9, "loss": 0.5}
            client.submit(task, replace(trained(number), metrics=metrics))
    world.close_round()
    said = {}
    for kind in ("json", "html", "md", "text"):
        assert run(["report", "--data", str(world.folder / "data"), "--format", kind]) == 0
        said[kind] = capsys.readouterr().out
    stated = json.loads(said["json"])["training"]
    assert stated == {"updates": 2, "mean_seconds": 3.0, "peak_gpu_bytes": 3 * 10**9, "peak_host_bytes": 10**9}
    words = "Training, as 2 updates state: 3.00 s on average, at most 3.00 GB on the GPU and 1.00 GB of the process."
    assert all(words in " ".join(said[kind].split()) for kind in ("html", "md", "text"))


def test_an_aggregator_that_is_away_does_not_end_what_serves(world: World, tmp_path: Path) -> None:
    edge = replace(site(world), address="127.0.0.1:1")
    with reporting(edge, lambda: USAGE, every_s=600):
        served = True
    assert served


def test_an_old_version_in_memory_and_a_pool_that_is_too_small_are_alerts(world: World, files: dict[str, Path]) -> None:
    owner = publisher(world)
    for name in ("berlin", "paris"):
        owner.push("city", files[name].read_bytes())
    with pool_of(model(), files) as pool:
        pool.activate("berlin")
        report_pool(site(world), pool.usage())
    report_pool(site(world, "small"), replace(USAGE, switches=40, hits=10, misses=30, known=9))
    said = [alert.words for alert in alerts(world.ledger, (), now_ms())]
    assert "The pool of berlin serves version 0 of city; 1 is the newest" in said
    assert "The pool of small reads a file at 30 of 40 switches: 1 of 9 experts fit in its memory" in said
    assert len(said) == 2
