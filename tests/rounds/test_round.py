"""A whole round over real gRPC, without Flower: sync, submit, merge, publish, sync again."""

import numpy as np
import pytest

from compeft_core import compress, decode, densify, merge
from compeft_proto.convert import payload_of
from compeft_proto.errors import RoundClosedError
from tests.rounds.conftest import DOWNLINK, EXPERT, LAYOUT, UPLINK, World, synced_by, task_vector, trained


def test_a_round_leads_every_client_to_the_same_composed_expert(world: World) -> None:
    clients = [world.edge(f"edge-{i}") for i in range(3)]
    task = world.open_round()
    start = [synced_by(c, task).vector for c in clients]
    receipts = [c.submit(task, trained(i)) for i, c in enumerate(clients)]
    closed = world.close_round()
    after = [c.sync(EXPERT) for c in clients]

    assert closed.accepted == 3
    assert [s.version for s in after] == [1, 1, 1]
    assert len({s.vector.tobytes() for s in after}) == 1
    assert len({r.update_digest for r in receipts}) == 3
    updates = [payload_of(LAYOUT, compress(LAYOUT, task_vector(i), UPLINK)) for i in range(3)]
    composed = densify(compress(LAYOUT, merge("average", updates, [300.0] * 3), DOWNLINK))
    np.testing.assert_array_equal(after[0].vector, start[0] + composed)


def test_what_the_uplink_left_behind_goes_with_the_next_round(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round(1)
    synced_by(client, task)
    client.submit(task, trained(1))
    world.close_round(1)
    task = world.open_round(2)
    synced_by(client, task)
    receipt = client.submit(task, trained(2))

    first = compress(LAYOUT, task_vector(1), UPLINK)
    residual = task_vector(1) - densify(first)
    expected = payload_of(LAYOUT, compress(LAYOUT, task_vector(2) + residual, UPLINK)).blob
    assert receipt.sequence == 2
    assert receipt.payload_bytes == len(expected)
    (stored,) = world.ledger.submissions(EXPERT, task.run, 2)
    assert stored.update_digest == receipt.update_digest


def test_what_the_downlink_left_behind_goes_with_the_next_version(world: World) -> None:
    client = world.edge("edge")
    for number in (1, 2):
        task = world.open_round(number)
        before = synced_by(client, task).vector
        client.submit(task, trained(number))
        world.close_round(number)
    sent_1 = decode(payload_of(LAYOUT, compress(LAYOUT, task_vector(1), UPLINK)))
    left_up = task_vector(1) - densify(sent_1)
    sent_2 = compress(LAYOUT, task_vector(2) + left_up, UPLINK)
    left_down = densify(sent_1) - densify(compress(LAYOUT, densify(sent_1), DOWNLINK))
    step = densify(compress(LAYOUT, densify(sent_2) + left_down, DOWNLINK))
    np.testing.assert_array_equal(client.sync(EXPERT).vector, before + step)


def test_the_ledger_counts_payload_and_wire_bytes_of_both_directions(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round()
    synced_by(client, task)
    receipt = client.submit(task, trained(1))
    world.close_round()
    world.edge("late").sync(EXPERT)

    transfers = {(t.direction, t.version): t for t in world.transfers(4) if t.direction == "down" or t.payload_bytes}
    up, first, second = transfers["up", 1], transfers["down", 0], transfers["down", 1]
    assert up.payload_bytes == receipt.payload_bytes
    assert up.dense_fp32_bytes == 4 * LAYOUT.size
    assert first.payload_bytes == 0
    assert second.payload_bytes == world.ledger.versions(EXPERT, 0, 1)[0].payload_bytes
    assert receipt.payload_bytes < up.wire_received_bytes < receipt.payload_bytes + 2000
    assert second.payload_bytes < second.wire_sent_bytes < second.payload_bytes + 2000


def test_a_round_without_updates_closes_and_leaves_the_version(world: World) -> None:
    world.open_round()
    closed = world.close_round()
    assert (closed.closed, closed.accepted, closed.version) == (True, 0, 0)


def test_closing_a_round_twice_publishes_one_version(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round()
    synced_by(client, task)
    client.submit(task, trained(1))
    assert world.close_round().version == world.close_round().version == 1


def test_a_new_run_continues_from_the_newest_version_and_abandons_an_open_round(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round(1)
    synced_by(client, task)
    client.submit(task, trained(1))
    task = world.open_round(2)  # a conductor died before closing round 1
    assert task.version == 0
    synced_by(client, task)
    client.submit(task, trained(2))
    world.close_round(2)

    both = task_vector(1) + 0 + task_vector(2)  # nothing of round 1 was merged, so all of it is sent again
    sent = densify(compress(LAYOUT, task_vector(2) + task_vector(1), UPLINK))
    np.testing.assert_allclose(both - sent, task_vector(1) + task_vector(2) - sent, rtol=0, atol=1e-9)
    step = densify(compress(LAYOUT, sent, DOWNLINK))
    start = world.edge("fresh").sync(EXPERT, 0).vector
    np.testing.assert_array_equal(client.sync(EXPERT).vector, start + step)


def test_a_refused_call_has_a_wire_but_no_payload(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round()
    synced_by(client, task)
    world.close_round()
    with pytest.raises(RoundClosedError):
        client.submit(task, trained(1))
    refused = world.transfers(3)[-1]
    assert (refused.direction, refused.payload_bytes, refused.dense_fp32_bytes) == ("up", 0, 0)
    assert refused.wire_received_bytes > 300
