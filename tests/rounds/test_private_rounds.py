"""Private rounds over real gRPC: clip, noise, compress; the account; what would undo them is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from compeft_client.exchange.edge_client import Trained
from compeft_client.exchange.quality_floor import Floor
from compeft_core import Compression, compress, decode, densify, parse
from compeft_core.errors import FormatError, InputError
from compeft_core.privacy.clipping import Noise, norm_of, private_mean, unit_of
from compeft_core.privacy.terms import ClientPrivacy
from compeft_proto.convert import payload_of
from compeft_proto.errors import ConflictError, PrivacySpentError
from compeft_proto.round_task import RoundTask, task_from_values
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.admin.lineage import Versions
from compeft_server.cli.privacy import app
from compeft_server.data_directory import open_store
from compeft_server.ledger.lookups.privacy_account import read_account
from compeft_server.privacy.accountant import NoisyRelease, epsilon_of
from tests.rounds.conftest import DOWNLINK, EXPERT, LAYOUT, ORIGIN, RUN, UPLINK, World, synced_by, task_vector, trained

TERMS = ClientPrivacy(clip=0.02, noise_multiplier=2.0, delta=1e-5)


def opened(world: World, terms: ClientPrivacy = TERMS, number: int = 1, run: str = RUN) -> RoundTask:
    """Open a private round; the task that its clients get."""
    found = world.conductor().open_round(EXPERT, run, number, 60.0, privacy=terms, asked=3)
    return RoundTask(EXPERT, run, number, found.round_nonce, found.base_version, UPLINK, privacy=replace(terms, clip=found.clip))


def a_round(world: World, clients: list, terms: ClientPrivacy = TERMS, number: int = 1, run: str = RUN) -> RoundTask:
    """A private round of these clients."""
    task = opened(world, terms, number, run)
    for seed, client in enumerate(clients):
        synced_by(client, task)
        client.submit(task, trained(seed))
    world.conductor().close_round(EXPERT, run, number, "average", 1.0, DOWNLINK)
    return task


def submitted(world: World, number: int = 1) -> list[pb.UpdateManifest]:
    """The manifests of a round's updates."""
    found = world.ledger.submissions(EXPERT, RUN, number)
    return [pb.UpdateManifest.FromString(Envelope.FromString(s.envelope).payload) for s in found]


def payload(world: World, manifest: pb.UpdateManifest):
    """What an update encodes."""
    store = open_store(world.folder / "data")
    return parse(b"".join(store.read(ref.sha256) for ref in manifest.chunks), max_size=LAYOUT.size)


def versions(world: World) -> Versions:
    """The operator's view."""
    return Versions(world.aggregator, open_store(world.folder / "data"), world.ledger)


def test_a_version_is_compressed_from_the_noised_mean_of_clipped_updates(world: World) -> None:
    clients = [world.edge(f"edge-{i}") for i in range(3)]
    a_round(world, clients)
    private = world.ledger.private.round(EXPERT, RUN, 1)
    updates = [payload(world, manifest) for manifest in submitted(world)]
    mean = private_mean(updates, [1.0] * 3, Noise(0.02, 2.0, private.seed))
    start, after = world.edge("late").sync(EXPERT, 0).vector, clients[0].sync(EXPERT).vector
    np.testing.assert_array_equal(after, start + densify(compress(LAYOUT, mean, DOWNLINK)))
    bare = private_mean(updates, [1.0] * 3, Noise(0.02, 1e-9, private.seed))
    assert np.abs(mean - bare).std() * 3 > 0.5 * 2.0 * 0.02


def test_each_update_is_within_the_clip_salted_and_says_nothing_beside_its_payload(world: World) -> None:
    a_round(world, [world.edge(f"edge-{i}") for i in range(3)])
    found = submitted(world)
    assert len({manifest.salt for manifest in found}) == 3
    for manifest in found:
        update = densify(decode(payload(world, manifest)))
        assert norm_of(update) <= 0.02 * 1.004  # bfloat16 rounds the dense part; the aggregator clips again
        assert not manifest.metrics
        assert (manifest.weight, manifest.within_clip, len(manifest.salt)) == (1.0, False, 16)


def test_a_client_that_does_not_clip_is_clipped_by_the_aggregator(world: World) -> None:
    task = opened(world)
    liar = world.edge("liar")
    synced_by(liar, task)
    loud = Trained(1000 * task_vector(5), 300, {}, ORIGIN)
    liar.submit(replace(task, privacy=replace(TERMS, clip=1e6)), loud)
    world.conductor().close_round(EXPERT, RUN, 1, "average", 1.0, Compression(1.0, "norm"))
    private = world.ledger.private.round(EXPERT, RUN, 1)
    (sent,) = (payload(world, manifest) for manifest in submitted(world))
    bare = private_mean([sent], [1.0], Noise(0.02, 1e-9, private.seed))
    assert norm_of(bare) <= 0.02 * (1 + 1e-6) < norm_of(densify(decode(sent)))


def test_the_residual_is_left_out_unless_the_terms_carry_it_and_is_clipped_with_the_rest(world: World) -> None:
    for name, carries in (("plain", False), ("carrying", True)):
        client, terms = world.edge(name), replace(TERMS, residual=carries, clip=0.05)
        for number in (1, 2):
            a_round(world, [client], terms, number, run=name)
        found = world.ledger.submissions(EXPERT, name, 2)
        (manifest,) = (pb.UpdateManifest.FromString(Envelope.FromString(s.envelope).payload) for s in found)
        sent = payload(world, manifest)
        alone = task_vector(0) * np.float32(min(1.0, 0.05 / norm_of(task_vector(0))))
        same = np.array_equal(
            decode(sent).ternary.positions, decode(payload_of(LAYOUT, compress(LAYOUT, alone, UPLINK))).ternary.positions
        )
        assert same != carries
        assert norm_of(densify(decode(sent))) <= 0.05 * 1.004


def test_local_noise_is_on_every_value_before_the_client_compresses(world: World) -> None:
    terms = replace(TERMS, where="local", noise_multiplier=50.0)
    task = opened(world, terms)
    client = world.edge("edge")
    synced_by(client, task)
    client.submit(replace(task, compression=Compression(1.0)), Trained(np.zeros(LAYOUT.size, np.float32), 1, {}, ORIGIN))
    (manifest,) = submitted(world)
    dense = decode(payload(world, manifest)).dense
    assert decode(payload(world, manifest)).ternary.count > 0.99 * LAYOUT.ternary_size
    assert 0.5 < dense.std() / 1.0 < 1.5
    world.conductor().close_round(EXPERT, RUN, 1, "average", 1.0, DOWNLINK)
    assert world.ledger.private.round(EXPERT, RUN, 1).seed == b""
    account = read_account(world.ledger, EXPERT)
    assert account.epsilon == epsilon_of([NoisyRelease(25.0)], 1e-5)


def test_an_adaptive_clip_goes_on_from_round_to_round_and_run_to_run(world: World) -> None:
    terms = replace(TERMS, target_quantile=0.9)
    clients = [world.edge(f"edge-{i}") for i in range(3)]
    a_round(world, clients, terms)
    grown = world.ledger.private.round(EXPERT, RUN, 1).next_clip
    assert grown > 0.02
    assert opened(world, terms, 2).privacy.clip == grown
    assert opened(world, terms, 1, run="another").privacy.clip == grown
    merge = versions(world)._manifest(versions(world)._log.expert(EXPERT), 1).private_merge
    assert merge.value_noise > 2.0


def test_versions_with_noise_recompute_bit_for_bit_and_a_lost_seed_is_named(world: World) -> None:
    a_round(world, [world.edge(f"edge-{i}") for i in range(3)], replace(TERMS, target_quantile=0.5))
    versions(world).verify(EXPERT, 1)
    with world.ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE private_rounds SET seed = x''")
    with pytest.raises(Exception, match="no seed for its round"):
        versions(world).verify(EXPERT, 1)


def test_what_would_undo_noise_is_refused_by_name(world: World) -> None:
    client = world.edge("edge")
    a_round(world, [client])
    with pytest.raises(ConflictError, match="just what that client sent"):
        versions(world).forget(EXPERT, submitted(world)[0].keyid, 0)
    with pytest.raises(PrivacySpentError, match="a round without noise would undo them"):
        world.open_round(2)
    task = opened(world, TERMS, 2)
    synced_by(client, task)
    with pytest.raises(FormatError, match="upgrade this client's compeft"):
        client.submit(replace(task, privacy=None), trained(1))
    client.sync(EXPERT)
    task = opened(world, TERMS, 3)
    synced_by(client, task)
    client.submit(task, trained(1))
    with pytest.raises(InputError, match="not by 'median'"):
        world.conductor().close_round(EXPERT, RUN, 3, "median", 1.0, DOWNLINK)


def test_a_quality_floor_is_refused_with_local_noise(world: World) -> None:
    task, client = opened(world, replace(TERMS, where="local")), world.edge("edge")
    synced_by(client, task)
    with pytest.raises(InputError, match="local noise does not cover"):
        client.submit(task, trained(1), Floor(0.9, lambda arrays: 1.0))


def test_the_account_adds_up_over_runs_and_rollbacks_and_a_reached_bound_stops_by_name(world: World) -> None:
    clients = [world.edge("paris"), world.edge("berlin")]
    a_round(world, clients)
    versions(world).roll_back(EXPERT, 0, 0)
    a_round(world, clients[:1], run="second")
    account = read_account(world.ledger, EXPERT)
    assert account.epsilon == epsilon_of([NoisyRelease(2.0, times=2)], 1e-5)
    assert {m.member: m.rounds for m in account.members} == {"paris": 2, "berlin": 1}
    assert [(r.run, r.asked, r.answered) for r in account.rounds] == [(RUN, 3, 2), ("second", 3, 1)]
    bound = epsilon_of([NoisyRelease(2.0, times=3)], 1e-5)
    a_round(world, clients[:1], replace(TERMS, epsilon=bound), run="third")
    assert read_account(world.ledger, EXPERT).rounds_left == 0
    with pytest.raises(PrivacySpentError, match=r"would lead 'paris' to epsilon .* the bound is .*: the run ends here"):
        opened(world, replace(TERMS, epsilon=bound), 2, run="third")


def test_members_with_updates_from_before_the_noise_have_no_finite_epsilon(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round()
    synced_by(client, task)
    client.submit(task, trained(0))
    world.close_round()
    with pytest.raises(PrivacySpentError, match="merged without noise"):
        opened(world, replace(TERMS, epsilon=8.0), 2)
    a_round(world, [client], TERMS, 2)
    assert read_account(world.ledger, EXPERT).epsilon == float("inf")


def test_the_command_prints_the_account_for_people_and_programs(world: World) -> None:
    a_round(world, [world.edge("paris"), world.edge("berlin")], replace(TERMS, epsilon=8.0))
    arguments = [EXPERT, "--data", str(world.folder / "data")]
    text = CliRunner().invoke(app, arguments).output
    assert "at delta 1e-05, bound 8, " in text
    assert "berlin: epsilon " in text
    assert "asked 3, answered 2, version 1" in text
    values = json.loads(CliRunner().invoke(app, [*arguments, "--format", "json"]).output)
    assert values["epsilon"] == epsilon_of([NoisyRelease(2.0)], 1e-5)
    assert values["rounds_left"] == values["members"][0]["rounds_left"] > 0


def test_terms_travel_in_a_task_as_they_are() -> None:
    task = RoundTask(EXPERT, RUN, 1, b"n", 0, UPLINK, privacy=replace(TERMS, epsilon=3.0, data="x"))
    assert task_from_values(task.to_values()) == task
    with pytest.raises(FormatError, match="task has privacy of type NoneType"):
        task_from_values({k: v for k, v in task.to_values().items() if k != "privacy"})
    for wrong in ("{", "[]", '{"clip": 1}', task.to_values()["privacy"].replace("0.02", '"x"')):
        with pytest.raises(FormatError):
            task_from_values({**task.to_values(), "privacy": wrong})


def test_a_grid_is_a_power_of_two_below_the_noise() -> None:
    assert unit_of(1.0) == 2.0**-12
    assert unit_of(0.99) == 2.0**-13
