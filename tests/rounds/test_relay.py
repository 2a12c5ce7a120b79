"""Rounds of clients that cannot reach the aggregator: letters inside Flower's messages carry what they ask, get and send."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from compeft_client.exchange.connections import Letters
from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.exchange.state_directory import StateDirectory
from compeft_client.flower.mod import CompressionMod
from compeft_client.identity.edge_config import Edge
from compeft_core import layout_of, state_digest
from compeft_core.errors import CompeftError, FormatError, LimitError
from compeft_proto import envelope as dsse
from compeft_proto import relay_letter as letters
from compeft_proto.clock import now_ms
from compeft_proto.errors import (
    ExpiredError,
    ForbiddenError,
    ReplayError,
    RoundClosedError,
    SignatureError,
    TruncatedError,
    UnknownExpertError,
    UnknownKeyError,
    WrongBaseError,
)
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.round_task import RoundTask
from compeft_proto.sealed_box import close_box, open_box, relay_key_of
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.admin import policy_admin
from compeft_server.app.server import Settings, start
from compeft_server.flower.conductor import Conductor, ConductorConfig
from compeft_server.flower.run_health import RunStoppedError
from compeft_server.flower.strategy import CompressedStrategy
from compeft_server.identity.aggregator_keys import stage, take_up
from tests.rounds.conftest import EXPERT, ORIGIN, RUN, World, genesis, running, task_vector, trained
from tests.rounds.loopback_grid import LoopbackGrid
from tests.rounds.test_flower_rounds import NODES, PLAN, app_of, arrays, configs, manifests, obedient, station


@pytest.fixture(autouse=True)
def flower_task() -> Iterator[None]:
    """Flower builds messages only inside a task."""
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


NOWHERE = "agg.example:9443"
"""To open a connection there is an error: it is not this machine, and there is no TLS."""


def cut_off(world: World, count: int = 2) -> list[dict[str, object]]:
    """Node configurations of clients that do not reach the aggregator."""
    return [config | {"aggregator": NOWHERE} for config in configs(world, count)]


class Far:
    """A client that does not reach the aggregator, and a relay in one hand: letters go through `conductor` only."""

    def __init__(self, world: World, name: str, key: SigningKey | None = None) -> None:
        self.world, self.key = world, key or world.enrol(name)
        self.edge = Edge(NOWHERE, self.key, world.aggregator.public, world.folder / f"state-{name}", patience_s=0)
        self.conductor = world.conductor()

    def request(self) -> xp.Letter:
        """What it asks now."""
        asked = Letters(self.key, xp.Letter())
        asked.enclose(EdgeClient(self.edge, asked).next_request(EXPERT, RUN, 1))
        return asked.reply

    def answered(self, letter: xp.Letter) -> xp.Letter:
        """The aggregator's answer to it, as it is carried to the client."""
        return xp.Letter(request=letter.request, answer=self.conductor.carry_request(letter.request))

    def train(self, came: xp.Letter, task: RoundTask, seed: int = 1) -> xp.Letter:
        """What it sends back after it has read a letter and trained."""
        held = Letters(self.key, came)
        client = EdgeClient(self.edge, held)
        client.sync(task.expert, task.version, task.run, task.round)
        assert client.submit(task, trained(seed)) is None
        held.enclose(client.next_request(task.expert, task.run, task.round))
        return held.reply

    def round(self, number: int, seed: int = 1) -> pb.RoundStatement:
        """A whole round of this client."""
        task = self.world.open_round(number)
        self.conductor.carry_update(self.train(self.answered(self.request()), task, seed))
        return self.world.close_round(number)

    def memory(self) -> object:
        """What it remembers."""
        return StateDirectory.of(self.edge.state, EXPERT).load()


@pytest.fixture
def far(world: World) -> Far:
    return Far(world, "far")


def refused(world: World, error: type[CompeftError], words: str, attempt: Callable[[], object]) -> None:
    """`attempt` fails with this error, and the aggregator is as it was."""
    before = world.everything()
    with pytest.raises(error, match=words):
        attempt()
    assert world.everything() == before


@pytest.mark.parametrize("evaluated", [0.0, 1.0])
def test_relayed_rounds_lead_to_the_very_states_of_direct_ones(world: World, evaluated: float) -> None:
    inner = FedAvg(**NODES | {"fraction_evaluate": evaluated, "min_evaluate_nodes": 2})
    app = app_of(obedient)
    measured: list[int] = []

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        measured.append(context.node_id)
        return obedient(message, context)

    for expert, sites, relay in (("direct", configs(world), False), ("relayed", cut_off(world), True)):
        plan = replace(PLAN, expert=expert, relay=relay)
        CompressedStrategy(inner, plan, station(world)).start(LoopbackGrid(app, sites), arrays(), num_rounds=3)
    direct, relayed = manifests(world, "direct"), manifests(world, "relayed")
    assert [m.state_digest for m in relayed] == [m.state_digest for m in direct]
    assert [len(m.contributions) for m in relayed] == [2, 2, 2]
    assert len(measured) == (12 if evaluated else 0)


def test_a_round_costs_one_message_a_client_and_first_contact_one_more(world: World) -> None:
    grid = Counting(app_of(obedient), cut_off(world))
    CompressedStrategy(FedAvg(**NODES), replace(PLAN, relay=True), station(world)).start(grid, arrays(), num_rounds=3)
    assert grid.pushed == 2 * (3 + 1)


class Counting(LoopbackGrid):
    pushed = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.pushed += len(messages)
        return super().push_messages(messages)


def test_the_ledger_has_the_same_payload_as_of_direct_rounds_and_what_the_letters_carried(world: World) -> None:
    far, near = Far(world, "far"), world.edge("near")
    task = world.open_round()
    near.sync(EXPERT, 0, RUN, 1)
    near.submit(task, trained(1))
    far.conductor.carry_update(far.train(far.answered(far.request()), task))
    world.close_round()
    rows = world.transfers_of(EXPERT, "up", 3) + world.transfers_of(EXPERT, "down", 2)
    direct, relayed = ([r for r in rows if r.keyid == key] for key in (near._edge.key.keyid, far.key.keyid))
    facts = lambda row: (row.direction, row.run, row.round, row.version, row.payload_bytes, row.dense_fp32_bytes)  # noqa: E731
    assert [facts(r) for r in relayed] == [facts(r) for r in direct]
    assert [r.relayed_bytes for r in direct] == [0, 0]
    for row in relayed:
        assert row.payload_bytes < row.relayed_bytes < row.wire_received_bytes + row.wire_sent_bytes


def test_a_chunk_that_is_there_many_times_travels_once(world: World) -> None:
    layout = layout_of({"zeros": (1000, 1000)})
    zeros = np.zeros(layout.size, np.float32)
    many = genesis(layout, "many")
    many.snapshot.SetInParent()
    many.state_digest = state_digest(layout, zeros)
    world.conductor().publish(many, zeros.tobytes())
    far = Far(world, "far")
    asked = Letters(far.key, xp.Letter())
    asked.enclose(EdgeClient(far.edge, asked).next_request("many", RUN, 1))
    came = far.answered(asked.reply)
    assert 2**20 < sum(map(len, came.answer)) < 2 * 2**20
    assert not EdgeClient(far.edge, Letters(far.key, came)).sync("many", 0).vector.any()


def test_the_relay_sees_neither_a_version_nor_an_update(world: World, far: Far) -> None:
    far.round(1)
    task = world.open_round(2)
    came = far.answered(far.request())
    back = far.train(came, task, 2)
    store = world.folder / "data" / "chunks"
    chunks = [path.read_bytes() for path in store.rglob("*") if path.is_file()]
    assert chunks
    stated = world.ledger.versions(EXPERT, 0, 1)[0].envelope
    for sent in (came.SerializeToString(), back.SerializeToString()):
        assert not any(secret[:64] in sent for secret in (*chunks, stated))
    for stranger in (new_key(), world.conductor_key):
        with pytest.raises(FormatError, match="not closed to relay key"):
            open_box(relay_key_of(stranger), xp.SyncReply, came.answer[0])


# What a relay may try with an answer


def test_an_altered_answer_is_refused(world: World, far: Far) -> None:
    task, came = world.open_round(), far.answered(far.request())
    box = came.answer[1]
    came.answer[1] = box[:-1] + bytes([box[-1] ^ 1])
    refused(world, FormatError, "was altered", lambda: far.train(came, task))


def test_an_answer_that_the_relay_makes_itself_is_refused(world: World, far: Far) -> None:
    task, letter = world.open_round(), far.request()
    request = dsse.open_envelope(letter.request, dsse.only(far.key.public), dsse.SYNC_REQUEST)
    stated = pb.SyncStatement(expert=EXPERT, nonce=request.nonce, keyid=request.keyid)
    sealed = dsse.seal(world.conductor_key, dsse.SYNC_STATEMENT, stated)
    replies = (xp.SyncReply(statement=sealed), xp.SyncReply(listed=True))
    came = xp.Letter(request=letter.request, answer=[close_box(request.relay_key, reply) for reply in replies])
    refused(world, UnknownKeyError, "no enrolled key signed", lambda: far.train(came, task))
    assert far.memory() == type(far.memory())()


def test_an_answer_to_another_client_is_refused(world: World, far: Far) -> None:
    other = Far(world, "other")
    task, came = world.open_round(), other.answered(other.request())
    refused(world, FormatError, "not closed to relay key", lambda: far.train(came, task))
    mixed = xp.Letter(request=came.request, answer=far.answered(far.request()).answer)
    refused(world, ReplayError, "has not signed", lambda: far.train(mixed, task))


def test_an_answer_to_another_request_of_the_same_client_is_refused(world: World, far: Far) -> None:
    task, first, second = world.open_round(), far.answered(far.request()), far.request()
    swapped = xp.Letter(request=second.request, answer=first.answer)
    refused(world, ReplayError, "answers another request", lambda: far.train(swapped, task))


def test_an_answer_that_was_used_is_refused_once_the_client_has_gone_on(world: World, far: Far) -> None:
    came = far.answered(far.request())
    far.train(came, world.open_round(1))
    before, task = far.memory(), world.open_round(2)
    refused(world, ReplayError, "made at no version, sequence number 0", lambda: far.train(came, task))
    assert far.memory() == before


def test_an_answer_to_a_request_of_more_than_an_hour_ago_is_refused(
    world: World, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, came = world.open_round(), far.answered(far.request())
    monkeypatch.setattr("compeft_client.exchange.connections.now_ms", lambda: now_ms() + 3_700_000)
    refused(world, ExpiredError, r"37\d\d s ago", lambda: far.train(came, task))


def test_an_answer_without_a_chunk_is_refused(world: World, far: Far) -> None:
    far.round(1)
    task, late = world.open_round(2), Far(world, "late")
    came = late.answered(late.request())
    del came.answer[-1]
    refused(world, TruncatedError, "does not hold chunk", lambda: late.train(came, task))


def test_an_answer_that_leads_elsewhere_than_the_task_is_refused(world: World, far: Far) -> None:
    task = replace(world.open_round(), version=1)
    refused(world, WrongBaseError, "offers version 0, asked was for 1", lambda: far.train(far.answered(far.request()), task))


# What a relay may try with a request


def test_an_altered_request_is_refused(world: World, far: Far) -> None:
    letter = far.request()
    letter.request.payload = letter.request.payload.replace(far.key.keyid.encode(), b"0" * 32)
    refused(world, SignatureError, "does not fit", lambda: far.answered(letter))


def test_a_request_with_a_relay_key_of_the_relay_is_refused(world: World, far: Far) -> None:
    asked = dsse.parse(dsse.verify(far.request().request, dsse.only(far.key.public)), dsse.SYNC_REQUEST)
    asked.relay_key = relay_key_of(world.conductor_key).public
    letter = xp.Letter(request=dsse.seal(world.conductor_key, dsse.SYNC_REQUEST, asked))
    refused(world, ForbiddenError, "manifest names key", lambda: far.answered(letter))


def test_a_request_that_was_kept_too_long_is_refused(world: World, far: Far) -> None:
    letter = far.request()
    world.offset_ms[0] = 3_700_000
    refused(world, ExpiredError, "seal it again", lambda: far.answered(letter))


def test_a_client_without_a_grant_or_that_is_revoked_gets_no_answer(world: World, far: Far) -> None:
    policy_admin.rule(world.ledger, "deny", EXPERT, "far", ("fetch",), now_ms())
    refused(world, ForbiddenError, "may not fetch", lambda: far.answered(far.request()))
    gone = Far(world, "gone")
    letter = gone.request()
    world.ledger.revoke("gone", now_ms())
    refused(world, UnknownKeyError, gone.key.keyid, lambda: far.answered(letter))


def test_a_relay_is_not_told_what_else_its_client_may_fetch(world: World, far: Far) -> None:
    asked = Letters(far.key, xp.Letter())
    asked.enclose(pb.SyncRequest(expert="nothing", keyid=far.key.keyid))
    with pytest.raises(UnknownExpertError) as found:
        far.answered(asked.reply)
    assert EXPERT not in str(found.value)


# What a relay may try with an update


def test_an_altered_update_is_refused(world: World, far: Far) -> None:
    letter = far.train(far.answered(far.request()), world.open_round())
    for alter in (lambda box: b"", lambda box: box[:-1] + bytes([box[-1] ^ 1]), lambda box: box[:50]):
        altered, cut = xp.Letter.FromString(letter.SerializeToString()), xp.Letter.FromString(letter.SerializeToString())
        altered.update, cut.chunks[0].box = alter(letter.update), alter(letter.chunks[0].box)
        refused(world, FormatError, "was altered", lambda altered=altered: far.conductor.carry_update(altered))
        refused(world, FormatError, "was altered", lambda cut=cut: far.conductor.carry_update(cut))
    assert far.conductor.carry_update(letter).sequence == 1


def test_an_update_that_the_relay_makes_itself_is_refused(world: World, far: Far) -> None:
    task = world.open_round()
    other = Far(world, "other", world.conductor_key)
    forged = other.train(other.answered(other.request()), task)
    refused(world, ForbiddenError, "role conductor", lambda: far.conductor.carry_update(forged))
    stranger = new_key()
    mine = pb.UpdateManifest(expert=EXPERT, keyid=far.key.keyid)
    box = close_box(relay_key_of(world.aggregator).public, xp.SubmitRequest(envelope=dsse.seal(stranger, dsse.UPDATE, mine)))
    refused(world, UnknownKeyError, stranger.keyid, lambda: far.conductor.carry_update(xp.Letter(update=box)))


def test_a_chunk_of_another_update_is_refused(world: World, far: Far) -> None:
    other, task = Far(world, "other"), world.open_round()
    mine, theirs = (each.train(each.answered(each.request()), task, seed) for seed, each in enumerate((far, other)))
    mine.chunks[0].box = theirs.chunks[0].box
    refused(world, CompeftError, "chunk", lambda: far.conductor.carry_update(mine))


def test_an_update_that_is_handed_in_twice_counts_once_and_not_in_the_next_round(world: World, far: Far) -> None:
    letter = far.train(far.answered(far.request()), world.open_round(1))
    assert far.conductor.carry_update(letter) == far.conductor.carry_update(letter)
    assert world.close_round(1).accepted == 1
    world.open_round(2)
    refused(world, ReplayError, "accepted before", lambda: far.conductor.carry_update(letter))


def test_an_update_that_comes_after_its_round_is_refused_and_its_mass_stays_with_the_client(world: World, far: Far) -> None:
    letter = far.train(far.answered(far.request()), world.open_round(1))
    world.close_round(1)
    refused(world, RoundClosedError, "closed", lambda: far.conductor.carry_update(letter))
    task = world.open_round(2)
    direct = world.edge("direct")
    direct.sync(EXPERT, task.version, RUN, 2)
    far.conductor.carry_update(far.train(far.answered(letter), task, 2))
    both = far.memory()
    direct.submit(task, replace(trained(2), task_vector=task_vector(2) + task_vector(1)))
    assert StateDirectory.of(direct._edge.state, EXPERT).load().pending.payload == both.pending.payload  # type: ignore[attr-defined,union-attr]


def test_an_update_that_its_client_has_taken_back_is_refused_even_after_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as world:
        far = Far(world, "far")
        task = world.open_round()
        kept = far.train(far.answered(far.request()), task)
        held = Letters(far.key, far.answered(kept))
        EdgeClient(far.edge, held).sync(EXPERT)
        assert far.memory().pending is None, "the statement said that it had not come in"  # type: ignore[attr-defined]
        refused(world, ReplayError, "sequence number 1", lambda: far.conductor.carry_update(kept))
        server, port = start(Settings(tmp_path / "data"), world.ledger)
        again = ConductorConfig(f"127.0.0.1:{port}", world.conductor_key, world.aggregator.public)
        with pytest.raises(ReplayError, match="accepted or settled is 1"):
            Conductor(again).carry_update(kept)
        server.stop(None).wait()


# The rest


def test_a_client_follows_a_change_of_the_aggregators_key_in_a_letter(tmp_path: Path) -> None:
    with running(tmp_path) as world:
        far = Far(world, "far")
        far.round(1)
    stage(tmp_path / "data")
    new = take_up(tmp_path / "data", now_ms())
    assert new is not None
    server, port = start(Settings(tmp_path / "data"), world.ledger)
    world.address = f"127.0.0.1:{port}"
    far.conductor = world.conductor()
    assert far.round(2, 2).accepted == 1
    server.stop(None).wait()


def test_what_does_not_fit_into_a_letter_is_refused_with_the_way_out(
    world: World, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, task = far.answered(far.request()), world.open_round()
    monkeypatch.setattr(letters, "MAX_BYTES", 100)
    refused(world, LimitError, r"takes 100: let this client reach .* \(Plan\(relay=False\)\)", lambda: far.train(came, task))
    monkeypatch.undo()
    near = world.edge("near")
    task = world.open_round(2)
    near.sync(EXPERT, 0, RUN, 2)
    near.submit(task, trained(3))
    world.close_round(2)
    monkeypatch.setattr(letters, "MAX_BYTES", 100)
    refused(world, LimitError, "the way to sentiment version 1 has", lambda: far.answered(far.request()))


def broken_once() -> ClientApp:
    """An app that fails the first time that its second node trains."""
    failed: list[int] = []
    app = ClientApp(mods=[CompressionMod(lambda _: ORIGIN)])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_id == 1001 and not failed:
            failed.append(1)
            raise RuntimeError("out of memory")
        return obedient(message, context)

    return app


def test_a_client_that_fails_is_asked_again_and_the_round_goes_on_without_it(world: World) -> None:
    grid = LoopbackGrid(broken_once(), cut_off(world))
    CompressedStrategy(FedAvg(**NODES), replace(PLAN, relay=True), station(world)).start(grid, arrays(), num_rounds=2)
    assert [len(m.contributions) for m in manifests(world)] == [1, 2]


def test_a_client_that_is_denied_is_left_out_and_named_in_the_ledger(world: World) -> None:
    sites = cut_off(world)
    policy_admin.rule(world.ledger, "deny", "lora", "edge-1", ("fetch",), now_ms())
    grid = LoopbackGrid(app_of(obedient), sites)
    CompressedStrategy(FedAvg(**NODES), replace(PLAN, relay=True), station(world)).start(grid, arrays(), num_rounds=2)
    assert [len(m.contributions) for m in manifests(world)] == [1, 1]
    assert any("'edge-1'" in e.event.detail and "may not fetch" in e.event.detail for e in world.ledger.audit_entries())


class Late(LoopbackGrid):
    """Node 1001 answers its task of round 1 when a message of round 2 has come."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            number = message.content["compeft"]["round"]
            asks = len(message.content) == 2
            self.slow = {1001} if number == 1 and not asks else set()
            late, self.asleep = (self.asleep, []) if number > 1 else ([], self.asleep)
            for kept in late:
                self._answer(kept)
        return super().push_messages(messages)


def test_a_late_update_is_handed_in_while_the_next_round_runs(world: World) -> None:
    plan = replace(PLAN, relay=True, min_updates=1, max_staleness=1)
    CompressedStrategy(FedAvg(**NODES), plan, station(world)).start(
        Late(app_of(obedient), cut_off(world)), arrays(), num_rounds=2
    )
    names = {m.public.keyid: m.name for m in world.ledger.members()}
    joined = [sorted((names[c.keyid], c.staleness) for c in m.contributions) for m in manifests(world)]
    assert joined[0] == [("edge-0", 0)]
    assert ("edge-1", 1) in joined[1]


def test_a_client_that_knows_nothing_of_letters_is_left_out_with_the_reason(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    app = ClientApp()
    app.train()(lambda message, _: Message(RecordDict(), reply_to=message))
    strategy = CompressedStrategy(FedAvg(**NODES), replace(PLAN, relay=True), station(world))
    with pytest.raises(RunStoppedError, match="2 of 2 clients failed"):
        strategy.start(LoopbackGrid(app, cut_off(world)), arrays(), num_rounds=1)
    assert manifests(world) == []
    assert "answered without a request: is its compeft older than Plan(relay=True)?" in caplog.text


def test_a_message_that_flower_does_not_take_is_an_error_and_not_waited_for(world: World) -> None:
    grid = Full(app_of(obedient), cut_off(world))
    CompressedStrategy(FedAvg(**NODES), replace(PLAN, relay=True), station(world)).start(grid, arrays(), num_rounds=1)
    assert [len(m.contributions) for m in manifests(world)] == [1]


class Full(LoopbackGrid):
    """Takes no task for node 1001, as Flower's does what is too large for it; questions it takes."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if any(m.metadata.dst_node_id == 1001 and len(m.content) > 2 for m in messages):
            return []
        return super().push_messages(messages)


def test_a_letter_says_nothing_of_the_rate_of_a_link(world: World) -> None:
    sites = [site | {"max-upload-s": 5} for site in cut_off(world)]
    CompressedStrategy(FedAvg(**NODES), replace(PLAN, relay=True), station(world)).start(
        LoopbackGrid(app_of(obedient), sites), arrays(), num_rounds=2
    )
    assert [len(m.contributions) for m in manifests(world)] == [2, 2]
    memory = StateDirectory.of(world.folder / "state-0", "lora").load()
    assert not memory.upload_bytes_per_s
