"""Messages that come twice, late, out of order or from a clock that was set back: each counts once or not at all."""

from collections.abc import Sequence
from dataclasses import replace

import grpc
import numpy as np
import pytest

from compeft_client.exchange.edge_client import EdgeClient, Trained
from compeft_client.exchange.state_directory import StateDirectory
from compeft_core import compress, densify
from compeft_core.errors import CompeftError, FormatError
from compeft_proto.errors import ChunkMismatchError, ExpiredError, ReplayError, UnreachableError, from_rpc
from compeft_proto.round_task import RoundTask
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_proto.v1.envelope_pb2 import Envelope
from tests.faults.test_disk import large
from tests.rounds.conftest import EXPERT, LAYOUT, UPLINK, World, synced_by, task_vector, trained

HOUR_MS = 3_600_000


def sent_by(client: EdgeClient, expert: str = EXPERT) -> tuple[Envelope, bytes]:
    """The sealed update that a client keeps until its round is over, and its payload."""
    directory = StateDirectory(client._edge.state / expert)
    pending = directory.load().pending
    assert pending is not None
    return Envelope.FromString(directory.read(pending.envelope)), directory.read(pending.payload)


def sealed_unsent(client: EdgeClient, task: RoundTask, vector: Trained) -> tuple[Envelope, bytes]:
    """What a client has made durable when it could not reach anybody."""
    with pytest.raises(UnreachableError):
        EdgeClient(replace(client._edge, address="127.0.0.1:1")).submit(task, vector)
    return sent_by(client, task.expert)


def submit_raw(world: World, messages: Sequence[xp.SubmitRequest]) -> list[xp.SubmitReply] | CompeftError:
    """What the aggregator says to these very messages."""
    with grpc.insecure_channel(world.address) as channel:
        try:
            return list(rpc.ExpertExchangeStub(channel).Submit(iter(messages)))
        except grpc.RpcError as error:
            return from_rpc(error, world.address)


def test_the_same_envelope_again_gets_the_same_receipt_and_counts_once(world: World) -> None:
    client, task = world.edge("edge"), world.open_round()
    synced_by(client, task)
    client.submit(task, trained(1))
    sealed, payload = sent_by(client)
    messages = [xp.SubmitRequest(envelope=sealed), xp.SubmitRequest(data=payload)]
    first, second = submit_raw(world, messages[:1]), submit_raw(world, messages)
    assert [reply.answer for reply in first] == [reply.answer for reply in second]
    assert world.close_round().accepted == 1
    assert isinstance(submit_raw(world, messages), ReplayError)
    assert world.ledger.head(EXPERT) == 1


def test_chunks_out_of_order_are_dropped_and_the_upload_goes_on(world: World) -> None:
    client, task, vector = large(world, 1)
    sealed, payload = sealed_unsent(client, task, vector)
    parts = [xp.SubmitRequest(data=payload[at : at + 2**20]) for at in range(0, len(payload), 2**20)]
    refused = submit_raw(world, [xp.SubmitRequest(envelope=sealed), *reversed(parts)])
    assert isinstance(refused, (ChunkMismatchError, FormatError))
    assert world.ledger.submissions("large-1", task.run, 1) == []
    assert EdgeClient(client._edge).resume("large-1") is not None


def test_data_that_comes_twice_is_refused_and_the_upload_goes_on(world: World) -> None:
    client, task, vector = large(world, 1)
    sealed, payload = sealed_unsent(client, task, vector)
    part = xp.SubmitRequest(data=payload[: 2**18])
    assert isinstance(submit_raw(world, [xp.SubmitRequest(envelope=sealed), *[part] * 4]), ChunkMismatchError)
    assert EdgeClient(client._edge).resume("large-1") is not None


def test_a_clock_that_jumps_back_an_hour_refuses_and_neither_loses_nor_doubles(world: World) -> None:
    client, task = world.edge("edge"), world.open_round(1)
    synced_by(client, task)
    first = client.submit(task, trained(1))
    world.offset_ms[0] = -HOUR_MS
    assert EdgeClient(client._edge).resume(EXPERT) == first
    with pytest.raises(ExpiredError, match="in the future: set the sender's clock"):
        client.sync(EXPERT)
    world.offset_ms[0] = 0
    assert world.close_round(1).accepted == 1
    client.sync(EXPERT)
    carried = densify(compress(LAYOUT, task_vector(1), UPLINK))
    directory = StateDirectory(client._edge.state / EXPERT)
    np.testing.assert_array_equal(directory.residual(directory.load(), LAYOUT), task_vector(1) - carried)
    task = world.open_round(2)
    synced_by(client, task)
    assert client.submit(task, trained(2)).sequence == 2
    assert world.close_round(2).accepted == 1
