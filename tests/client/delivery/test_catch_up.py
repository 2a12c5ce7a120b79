"""Catching up: whatever a client has, it gets to the state it wants, bit for bit, and by the fewest bytes."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_client.exchange.edge_client import EdgeClient
from compeft_core import Compression, state_digest, state_of
from compeft_core.errors import FormatError, NotFiniteError
from compeft_proto.clock import now_ms
from compeft_proto.errors import WrongBaseError
from compeft_proto.snapshot import decode_snapshot, encode_snapshot
from compeft_proto.sync_answer import Answer, apply_steps
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.admin.lineage import Versions
from compeft_server.aggregation.catch_up import Step, _refs, cheapest
from compeft_server.data_directory import open_store
from tests.rounds.conftest import EXPERT, LAYOUT, RUN, World, genesis, synced_by, trained

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, 3.4e38, -3.4e38]
FLOATS = st.sampled_from(SPECIAL) | st.floats(width=32, allow_nan=False, allow_infinity=False)
STEPS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 9)), max_size=9)


@given(st.lists(st.tuples(FLOATS, FLOATS), max_size=70), st.booleans())
def test_a_snapshot_gives_back_the_very_bits(pairs: list[tuple[float, float]], same: bool) -> None:
    reference = np.array([a for a, _ in pairs], np.float32)
    state = reference.copy() if same else np.array([b for _, b in pairs], np.float32)
    assert decode_snapshot(encode_snapshot(state, reference), reference).tobytes() == state.tobytes()


@given(st.data())
def test_a_damaged_snapshot_is_refused_or_decodes_to_something_finite(data: st.DataObject) -> None:
    reference = np.linspace(-1, 1, 50, dtype=np.float32)
    blob = bytearray(encode_snapshot(reference[::-1].copy(), reference))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(blob), at]))
    try:
        state = decode_snapshot(bytes(blob[:cut]), reference)
    except (FormatError, NotFiniteError):
        return
    assert np.isfinite(state).all()


def test_a_snapshot_that_would_unpack_to_more_is_refused() -> None:
    small, large = np.zeros(8, np.float32), np.zeros(10**6, np.float32)
    with pytest.raises(FormatError, match="only these"):
        decode_snapshot(encode_snapshot(large, large), small)


@given(STEPS, st.integers(0, 5), st.integers(0, 5))
def test_the_way_found_is_the_cheapest_there_is(edges: list[tuple[int, int, int]], start: int, goal: int) -> None:
    places = [b"", *(b"%d" % i for i in range(1, 6))]
    steps = [Step(i, places[a], places[b], cost) for i, (a, b, cost) in enumerate(edges) if b]
    known = {places[start]: 0} if start else {}
    found = cheapest(steps, known, places[goal])
    costs = {place: 0 if place in (b"", *known) else 10**6 for place in places}
    for _ in places:
        for step in steps:
            costs[step.state] = min(costs[step.state], costs[step.parent] + step.bytes)
    if costs[places[goal]] == 10**6:
        assert found is None
        return
    assert found is not None
    cost, way = found
    assert cost == costs[places[goal]] == sum(step.bytes for step in way)
    at = way[0].parent if way else places[goal]
    assert at in (b"", *known)
    for step in way:
        assert step.parent == at
        at = step.state
    assert at == places[goal]


def rounds(world: World, clients: Sequence[EdgeClient], count: int, density: float = 0.2) -> None:
    """As many more versions, compressed like this for the downlink."""
    for _ in range(count):
        number = len(world.ledger.rounds(EXPERT)) + 1
        task = replace(world.open_round(number), compression=Compression(density, "mean_magnitude"))
        for i, client in enumerate(clients):
            synced_by(client, task)
            client.submit(task, trained(100 * number + i))
        world.conductor().close_round(EXPERT, RUN, number, "average", 1.0, Compression(density, "mean_magnitude"))


def versions_of(world: World) -> Versions:
    return Versions(world.aggregator, open_store(world.folder / "data"), world.ledger)


def fetched(world: World, name: str, calls: int = 1) -> int:
    """Payload bytes that a client has fetched in its last call, once `calls` are recorded; a call is recorded just after it has ended."""
    member = next(m for m in world.ledger.members() if m.name == name)
    found = lambda: [t for t in world.ledger.transfers(EXPERT) if t.keyid == member.public.keyid]  # noqa: E731
    world._wait(lambda: len(found()) == calls)
    return found()[calls - 1].payload_bytes


def test_a_new_client_gets_a_short_log_as_steps_and_a_long_one_as_a_whole_state(world: World) -> None:
    client = world.edge("trainer")
    rounds(world, [client], 2, density=0.9)
    short = world.edge("short").sync(EXPERT)
    steps = [v.payload_bytes for v in world.ledger.versions(EXPERT, 0, 99)]
    assert fetched(world, "short") == sum(steps)
    assert world.ledger.snapshot(EXPERT, 2) is None
    rounds(world, [client], 18, density=0.9)
    long = world.edge("long").sync(EXPERT)
    steps = [v.payload_bytes for v in world.ledger.versions(EXPERT, 0, 99)]
    snapshot = world.ledger.snapshot(EXPERT, 20)
    assert snapshot is not None
    assert fetched(world, "long") == snapshot.payload_bytes < sum(steps)
    assert long.vector.tobytes() == client.sync(EXPERT).vector.tobytes() != short.vector.tobytes()


def test_a_whole_state_is_made_once_and_if_its_chunks_are_gone_it_is_the_same_bytes_again(world: World) -> None:
    rounds(world, [world.edge("trainer")], 20, density=0.9)
    world.edge("one").sync(EXPERT)
    first = world.ledger.snapshot(EXPERT, 20)
    chunks = {p.name for p in (world.folder / "data" / "chunks").rglob("*")}
    world.edge("two").sync(EXPERT)
    assert world.ledger.snapshot(EXPERT, 20) == first
    assert {p.name for p in (world.folder / "data" / "chunks").rglob("*")} == chunks
    for path in (world.folder / "data" / "chunks").rglob("*"):
        if first is not None and path.name in {ref.sha256.hex() for ref in _refs(first)}:
            path.unlink()
    world.edge("three").sync(EXPERT)
    assert world.ledger.snapshot(EXPERT, 20) == first
    assert {p.name for p in (world.folder / "data" / "chunks").rglob("*")} == chunks
    assert first is not None
    state = versions_of(world)._log.state(versions_of(world)._log.expert(EXPERT), 20)
    seeded = world.edge("seed").sync(EXPERT, 0).vector
    assert first.payload_bytes == len(encode_snapshot(state.vector, seeded))


def test_a_client_behind_a_rollback_fetches_no_step_that_it_does_not_need(world: World) -> None:
    client, behind = world.edge("trainer"), world.edge("behind")
    rounds(world, [client], 2)
    old = behind.sync(EXPERT)
    rounds(world, [client], 3)
    versions_of(world).roll_back(EXPERT, 2, now_ms())
    got = behind.sync(EXPERT)
    assert (got.version, got.vector.tobytes()) == (6, old.vector.tobytes())
    assert fetched(world, "behind", 2) == 0
    ahead = world.edge("ahead")
    ahead.sync(EXPERT, 5)
    assert ahead.sync(EXPERT).vector.tobytes() == old.vector.tobytes()
    assert fetched(world, "ahead", 2) == sum(v.payload_bytes for v in world.ledger.versions(EXPERT, 0, 2))


@pytest.mark.parametrize("seed", range(3))
def test_over_random_logs_every_client_gets_to_the_signed_state_and_never_by_more_bytes_than_all_steps(
    world: World, seed: int
) -> None:
    chance, versions = random.Random(seed), versions_of(world)
    clients = [world.edge("a"), world.edge("b")]
    keys = [m.public.keyid for m in world.ledger.members() if m.name in "ab"]
    rounds(world, clients, 1)
    for _ in range(7):
        head = world.ledger.head(EXPERT)
        what = chance.choice(["round", "round", "round", "back", "forget"])
        if what == "back":
            versions.roll_back(EXPERT, chance.randrange(head), now_ms())
        elif what == "forget":
            versions.forget(EXPERT, chance.choice(keys), now_ms())
        else:
            rounds(world, clients, 1, chance.choice([0.05, 0.9]))
    head = world.ledger.head(EXPERT)
    for number in range(6):
        client, have = world.edge(f"c{number}"), chance.choice([None, chance.randint(0, head)])
        if have is not None:
            client.sync(EXPERT, have)
        want = chance.randint(have or 0, head)
        got = client.sync(EXPERT, want)
        (row,) = world.ledger.versions(EXPERT, want - 1, want)
        assert state_digest(LAYOUT, got.vector) == row.state_digest
        all_steps = sum(v.payload_bytes for v in world.ledger.versions(EXPERT, -1 if have is None else have, want))
        assert fetched(world, f"c{number}", 1 if have is None else 2) <= all_steps


def test_an_expert_that_began_as_a_snapshot_is_caught_up_with_too(world: World) -> None:
    vector = np.random.default_rng(0).normal(size=LAYOUT.size).astype(np.float32)
    made = genesis(expert="given")
    made.ClearField("seeded")
    made.snapshot.SetInParent()
    made.state_digest = state_digest(LAYOUT, vector)
    world.conductor().publish(made, vector.astype("<f4").tobytes())
    client = world.edge("a")
    assert client.sync("given").vector.tobytes() == vector.tobytes()
    assert client.sync("given").version == 0


def test_a_way_that_leads_elsewhere_is_not_followed(world: World) -> None:
    rounds(world, [world.edge("a")], 1)
    versions = versions_of(world)
    first = versions._manifest(versions._log.expert(EXPERT), 0)
    state = state_of(LAYOUT, world.edge("b").sync(EXPERT, 0).vector)
    honest = pb.SyncStatement(expert=EXPERT, want_version=0, state_digest=first.state_digest)
    assert apply_steps(Answer(honest), [], first.genesis, LAYOUT, state).digest == first.state_digest
    lying = pb.SyncStatement(expert=EXPERT, want_version=1, state_digest=b"\x01" * 32)
    with pytest.raises(WrongBaseError, match="version 1 has state"):
        apply_steps(Answer(lying, (first,)), [b""], first.genesis, LAYOUT, state)
