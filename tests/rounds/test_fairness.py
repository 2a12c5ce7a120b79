"""No client starves another: shares, and the end of calls that stand still."""

import queue
from pathlib import Path

import grpc
import pytest

from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.identity.edge_config import Edge
from compeft_proto.clock import now_ms
from compeft_proto.errors import BusyError
from compeft_proto.keys import new_key
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_server.app.server import Settings, start
from compeft_server.data_directory import open_ledger
from compeft_server.domain.limits import Limits
from compeft_server.flower.conductor import Conductor, ConductorConfig
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.rpc.rate_limits import Slots
from tests.rounds.conftest import EXPERT, genesis


def test_slots_are_shared_and_given_back() -> None:
    slots = Slots(each=1, total=2)
    with slots.take("a"), slots.take("b"):
        with pytest.raises(BusyError, match="key a has 1 calls open"), slots.take("a"):
            pass
        with pytest.raises(BusyError, match="all 2 transfers"), slots.take("c"):
            pass
    with slots.take("a"), slots.take("c"):
        pass


def test_a_call_that_stands_still_is_ended_and_others_are_served(tmp_path: Path) -> None:
    settings, member = Settings(tmp_path / "data", limits=Limits(stall_s=0.5, max_calls=2)), new_key()
    ledger = open_ledger(settings.data)
    ledger.enrol("conductor", member.public, "conductor", now_ms())
    server, port = start(settings, ledger)
    address, aggregator = f"127.0.0.1:{port}", own_key(settings.data)
    silence: queue.SimpleQueue[xp.SubmitRequest | None] = queue.SimpleQueue()
    with grpc.insecure_channel(address) as channel:
        stalled = rpc.ExpertExchangeStub(channel).Submit(iter(silence.get, None))
        Conductor(ConductorConfig(address, member, aggregator.public)).publish(genesis())
        edge = Edge(address, member, aggregator.public, tmp_path / "state", patience_s=0)
        assert EdgeClient(edge).sync(EXPERT).version == 0
        with pytest.raises(grpc.RpcError) as caught:
            next(stalled)
        silence.put(None)
    assert caught.value.code() == grpc.StatusCode.CANCELLED
    server.stop(None).wait()
    ledger.close()
