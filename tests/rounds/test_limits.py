"""Limits: what each client and all together may take, refused with a hint when to come back; and one client does not starve another."""

import os
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import grpc
import numpy as np
import pytest

from compeft_client.exchange.edge_client import EdgeClient, Trained
from compeft_client.identity.edge_config import Edge
from compeft_core import Compression, layout_of
from compeft_core.errors import InputError
from compeft_proto import envelope as dsse
from compeft_proto.clock import now_ms
from compeft_proto.errors import BusyError, StorageFullError, ThrottledError, _milliseconds
from compeft_proto.keys import SigningKey
from compeft_proto.round_task import RoundTask
from compeft_proto.transport import persist
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.app.limits_file import read_limits
from compeft_server.chunks.disk_space import UploadQuota
from compeft_server.domain.limits import Limits
from compeft_server.rpc.rate_limits import Rates
from tests.rounds.conftest import EXPERT, ORIGIN, RUN, World, genesis, running, synced_by, trained

LARGE = layout_of({"a.lora_A": (8, 500), "head": (600, 1000)}, dense=["head"])
HALF = Compression(0.5, "norm")


def large(world: World, name: str) -> tuple[EdgeClient, RoundTask, Trained]:
    """A client that is about to send 1.2 MB for round 1 of an expert of that name."""
    world.conductor().publish(genesis(LARGE, name))
    client = world.edge(name)
    opened = world.conductor().open_round(name, RUN, 1, 60.0)
    client.sync(name)
    values = np.random.default_rng(1).normal(0, 1e-3, LARGE.size).astype(np.float32)
    return client, RoundTask(name, RUN, 1, opened.round_nonce, 0, HALF), Trained(values, 10, {}, ORIGIN)


def patient(client: EdgeClient) -> EdgeClient:
    edge = client._edge
    return EdgeClient(Edge(edge.address, edge.key, edge.aggregator, edge.state, patience_s=30))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_client_that_calls_too_often_is_told_when_to_come_back() -> None:
    clock = Clock()
    rates = Rates(Limits(calls_per_s_per_client=2, calls_burst_per_client=3), clock)
    for _ in range(3):
        rates.admit("a")
    with pytest.raises(ThrottledError, match="key a has used up the share of calls/s: come back in") as caught:
        rates.admit("a")
    rates.admit("b")
    clock.now = caught.value.retry_after_ms / 1000
    rates.admit("a")


def test_bytes_above_the_burst_are_paid_back_before_the_next_call() -> None:
    clock = Clock()
    rates = Rates(Limits(bytes_per_s_per_client=100, bytes_burst_per_client=1000), clock)
    rates.admit("a")
    rates.spend("a", 3000)
    with pytest.raises(ThrottledError, match="bytes/s") as caught:
        rates.admit("a")
    assert caught.value.retry_after_ms == 20_011
    clock.now = 20.1
    rates.admit("a")


def test_a_day_has_a_budget_of_bytes() -> None:
    clock = Clock()
    rates = Rates(Limits(bytes_per_day_per_client=86_400), clock)
    rates.admit("a")
    rates.spend("a", 2 * 86_400)
    clock.now = 86_000.0
    with pytest.raises(ThrottledError, match="bytes/day"):
        rates.admit("a")
    clock.now = 86_402.0
    rates.admit("a")


def test_the_rate_of_all_binds_only_clients_that_have_used_half_of_their_own() -> None:
    clock = Clock()
    rates = Rates(Limits(calls_burst_per_client=4, calls_per_s_all=3), clock)
    for _ in range(3):
        rates.admit("greedy")
    with pytest.raises(ThrottledError, match="all clients together"):
        rates.admit("greedy")
    rates.admit("modest")


def test_a_throttled_call_is_refused_with_a_hint_and_leaves_nothing(tmp_path: Path) -> None:
    limits = Limits(calls_per_s_per_client=0.5, calls_burst_per_client=2)
    with running(tmp_path, limits) as world:
        client = world.edge("edge")
        client.sync(EXPERT)
        client.sync(EXPERT)
        before = world.everything()
        with pytest.raises(ThrottledError) as caught:
            client.sync(EXPERT)
        assert 0 < caught.value.retry_after_ms <= 2001
        assert world.everything() == before
        assert world.ledger.refusals(EXPERT) == []
        assert patient(client).sync(EXPERT).version == 0


def test_a_client_does_not_come_back_before_it_was_asked_to() -> None:
    calls: list[float] = []

    def attempt() -> int:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise ThrottledError("later", 700)
        return len(calls)

    assert persist(attempt, 10.0) == 2
    assert calls[1] - calls[0] >= 0.7


def test_a_hint_beyond_the_clients_patience_ends_it_at_once() -> None:
    def attempt() -> int:
        raise ThrottledError("tomorrow", 86_400_000)

    with pytest.raises(ThrottledError, match="tomorrow"):
        persist(attempt, 10.0)


def test_more_unfinished_bytes_than_a_clients_share_are_refused_and_not_stored(tmp_path: Path) -> None:
    with running(tmp_path, Limits(max_partial_bytes_per_client=2**20)) as world:
        client, task, vector = large(world, "large")
        with pytest.raises(StorageFullError, match="its share is 1048576"):
            client.submit(task, vector)
        assert list((tmp_path / "data" / "partial").iterdir()) == []
        small, other = world.edge("small"), world.open_round()
        synced_by(small, other)
        assert small.submit(other, trained(1)).sequence == 1


def test_unfinished_bytes_that_have_expired_are_dropped_and_do_not_count(tmp_path: Path) -> None:
    room = UploadQuota(tmp_path, Limits(max_partial_bytes_per_client=100, min_free_bytes=0))
    left, of_another = tmp_path / "aa-1", tmp_path / "bb-1"
    left.write_bytes(bytes(60))
    of_another.write_bytes(bytes(60))
    with pytest.raises(StorageFullError, match="key aa has 60 bytes of unfinished uploads here and wants to send 50 more"):
        room.check("aa", 50)
    os.utime(left, (0, 0))
    os.utime(of_another, (0, 0))
    room.check("aa", 50)
    assert [path.name for path in tmp_path.iterdir()] == ["bb-1"]


def test_nothing_is_taken_in_below_the_floor_of_free_space_and_reading_goes_on(tmp_path: Path) -> None:
    with running(tmp_path, Limits(min_free_bytes=2**60)) as world:
        client, task, vector = large(world, "large")
        with pytest.raises(StorageFullError, match="its operator must make room") as caught:
            client.submit(task, vector)
        assert caught.value.retry_after_ms > 0
        assert client.sync("large").version == 0


def test_a_throttled_upload_ends_in_its_round_and_a_small_one_is_not_kept_waiting(tmp_path: Path) -> None:
    with running(tmp_path, Limits(bytes_per_s_per_client=700_000, bytes_burst_per_client=1.0)) as world:
        greedy, task, vector = large(world, "large")
        with ThreadPoolExecutor(1) as pool:
            upload = pool.submit(lambda: (patient(greedy).submit(task, vector), patient(greedy).sync("large")))
            small, other = world.edge("small"), world.open_round()
            synced_by(small, other)
            assert small.submit(other, trained(1)).sequence == 1
            assert upload.result()[0].sequence == 1


def test_a_client_that_holds_all_of_its_calls_leaves_room_for_another(tmp_path: Path) -> None:
    with running(tmp_path, Limits(max_calls_per_client=2, max_calls=3)) as world:
        key = world.enrol("greedy")
        silence: queue.SimpleQueue[xp.SyncCall | None] = queue.SimpleQueue()
        with grpc.insecure_channel(world.address) as channel:
            stub = rpc.ExpertExchangeStub(channel)
            held = [stub.Sync(chain([ask(key)], iter(silence.get, None))) for _ in range(2)]
            assert all(next(call).HasField("statement") for call in held)
            with pytest.raises(BusyError, match="its share is 2") as caught:
                world.edge("greedy", key).sync(EXPERT)
            small, task = world.edge("small"), world.open_round()
            synced_by(small, task)
            assert small.submit(task, trained(1)).sequence == 1
            silence.put(None)
            silence.put(None)
            assert all(list(call)[-1].listed for call in held)
    assert caught.value.retry_after_ms > 0


def ask(key: SigningKey) -> xp.SyncCall:
    request = pb.SyncRequest(expert=EXPERT, keyid=key.keyid, nonce=bytes(16), issued_at_ms=now_ms())
    return xp.SyncCall(envelope=dsse.seal(key, dsse.SYNC_REQUEST, request))


def test_a_limits_file_sets_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text("max_calls = 7\nbytes_per_s_per_client = 5e6\n")
    assert read_limits(path) == Limits(max_calls=7, bytes_per_s_per_client=5e6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_cals = 7", "no limit is named 'max_cals', there are: .*max_calls"),
        ("max_calls = 7.5", "max_calls is 7.5, it must be a whole number"),
        ("stall_s = -1", "stall_s is -1, it must be a number, 0 or more"),
        ("stall_s = true", "stall_s is True"),
        ("stall_s =", "is not TOML"),
    ],
)
def test_a_limits_file_that_says_nonsense_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_limits(path)


def test_a_limits_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        read_limits(tmp_path / "none.toml")


@pytest.mark.parametrize("hint", ["-5", "1e9", "٣", "", "99999999999"])
def test_a_hint_that_is_no_number_is_none(hint: str) -> None:
    assert _milliseconds(hint) == 0
