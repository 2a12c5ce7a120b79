"""Nothing is lost and nothing counts twice, whatever happens: random histories over real clients and a real aggregator.

Three clients train, submit, repeat, crash before or after their update is in or while it is, start again, come late or miss rounds;
conductors open rounds, close them or die. At the end, for every client, what was merged of it and its residual are together exactly what
it trained; and what the aggregator published and its own residual are together exactly what it merged. (Task vectors are whole numbers, so
a lost or doubled update is off by 1 or more somewhere, and rounding by less than a thousandth.)
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compeft_client.exchange.edge_client import EdgeClient, Trained
from compeft_client.exchange.state_directory import StateDirectory
from compeft_client.identity.edge_config import Edge
from compeft_core import Compression, Vector, decode, densify, layout_of
from compeft_core.errors import CompeftError
from compeft_core.frozen_tensors import A_ENDING, B_ENDING, active_places
from compeft_proto.errors import UnreachableError
from compeft_proto.keys import SigningKey
from compeft_proto.round_task import RoundTask
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.admin.lineage import Versions
from compeft_server.aggregation.expert_log import ExpertLog
from compeft_server.data_directory import open_store
from tests.rounds.conftest import ORIGIN, World, genesis

LAYOUT = layout_of({"q.lora_A.weight": (3, 8), "q.lora_B.weight": (6, 3), "h": (4,)}, dense=["h"])
CLIENTS = 3
NUMBERS = itertools.count()
WHO = st.integers(0, CLIENTS - 1)
FATES = st.sampled_from(["whole", "whole", "whole", "lost", "crashed", "delayed"])

steps = st.one_of(
    st.tuples(st.just("open"), st.integers(0, 2), st.sampled_from([(), (A_ENDING,), (B_ENDING,)])),
    st.just(("close",)),
    st.tuples(st.just("sync"), WHO),
    st.tuples(st.just("take_part"), WHO, FATES),
    st.tuples(st.just("take_part"), WHO, FATES),
    st.tuples(st.just("submit"), WHO, FATES),
    st.tuples(st.just("resume"), WHO),
    st.tuples(st.just("arrive"), WHO),
    st.tuples(st.just("restart"), WHO),
)


class Crashing(EdgeClient):
    """A client whose process ends before its update is sent (`lost`), before it has read the answer (`crashed`), or while the update
    is still under way (`delayed`).
    """

    fate = "whole"
    under_way: tuple[Envelope, bytes] | None = None

    def _send(self, sealed: Envelope, payload: bytes) -> pb.Receipt:
        if self.fate == "lost":
            raise UnreachableError("the process ended before it sent anything")
        if self.fate == "delayed":
            self.under_way = sealed, payload
            raise UnreachableError("the process ended, the update is still under way")
        receipt = super()._send(sealed, payload)
        if self.fate == "crashed":
            raise UnreachableError("the process ended before it read the answer")
        return receipt


@dataclass
class History:
    """One expert with its clients, and what each has trained so far."""

    world: World
    keys: list[SigningKey]
    expert: str
    run: str = "run"
    number: int = 0
    seed: int = 0
    task: RoundTask | None = None
    synced: list[RoundTask | None] = field(default_factory=lambda: [None] * CLIENTS)
    trained: list[Vector] = field(default_factory=lambda: [np.zeros(LAYOUT.size) for _ in range(CLIENTS)])
    clients: list[Crashing] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clients = [self.fresh(who) for who in range(CLIENTS)]

    def fresh(self, who: int) -> Crashing:
        folder = self.world.folder / f"state-{who}"
        return Crashing(Edge(self.world.address, self.keys[who], self.world.aggregator.public, folder, patience_s=0))

    def memory_of(self, who: int) -> StateDirectory:
        return StateDirectory(self.world.folder / f"state-{who}" / self.expert)

    def open(self, max_staleness: int, resting: tuple[str, ...]) -> None:
        self.number += 1
        opened = self.world.conductor().open_round(self.expert, self.run, self.number, 60.0, max_staleness)
        up = Compression(0.3, "norm")
        self.task = RoundTask(self.expert, self.run, self.number, opened.round_nonce, opened.base_version, up, resting)

    def close(self) -> None:
        if self.task is not None:
            down = Compression(0.4, "norm")
            self.world.conductor().close_round(self.expert, self.run, self.task.round, "average", 1.0, down)

    def sync(self, who: int) -> None:
        if self.task is not None:
            self.clients[who].sync(self.expert)
            self.synced[who] = self.task

    def submit(self, who: int, fate: str) -> None:
        """Train for the round that this client synced for, which may be over, and hand it in; count it once the client has it down."""
        task = self.synced[who]
        if task is None:
            return
        self.seed += 1
        whole = np.random.default_rng(self.seed).integers(-8, 9, LAYOUT.size).astype(np.float32)
        vector = np.where(active_places(LAYOUT, task.resting), whole, np.float32(0))
        before, self.clients[who].fate = self.memory_of(who).load().sequence, fate
        try:
            self.clients[who].submit(task, Trained(vector, 100 * (who + 1), {}, ORIGIN))
        finally:
            self.clients[who].fate = "whole"
            if self.memory_of(who).load().sequence > before:
                self.trained[who] += vector

    def take_part(self, who: int, fate: str) -> None:
        self.sync(who)
        self.submit(who, fate)

    def resume(self, who: int) -> None:
        self.clients[who].resume(self.expert)

    def arrive(self, who: int) -> None:
        """What was under way arrives after all."""
        client = self.clients[who]
        if client.under_way is not None:
            client._send(*client.under_way)

    def restart(self, who: int) -> None:
        under_way = self.clients[who].under_way
        self.clients[who].__exit__()
        self.clients[who] = self.fresh(who)
        self.clients[who].under_way = under_way

    def play(self, history: list[tuple[object, ...]]) -> None:
        for name, *arguments in history:
            step: Callable[..., None] = getattr(self, str(name))
            try:
                step(*arguments)
            except CompeftError:
                continue  # a refusal, or a crash: that nothing comes of it is what is tested
        self.close()
        for who in range(CLIENTS):
            self.clients[who].sync(self.expert)
            self.clients[who].__exit__()


@pytest.fixture
def members(world: World) -> tuple[World, list[SigningKey]]:
    return world, [world.enrol(f"edge-{who}") for who in range(CLIENTS)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, min_size=8, max_size=24))
def test_what_was_merged_and_what_is_left_are_what_was_trained(
    members: tuple[World, list[SigningKey]], happened: list[tuple[object, ...]]
) -> None:
    check(members, [("open", 1, ()), *happened])


def test_a_history_with_everything_in_it(members: tuple[World, list[SigningKey]]) -> None:
    check(
        members,
        [
            *[("open", 2, ()), ("sync", 0), ("sync", 1), ("sync", 2)],
            *[("submit", 0, "whole"), ("submit", 1, "crashed"), ("sync", 0), ("resume", 1), ("close",)],
            *[("open", 2, (A_ENDING,)), ("submit", 2, "whole"), ("sync", 0), ("submit", 0, "lost"), ("restart", 0)],
            *[("sync", 1), ("submit", 1, "whole"), ("close",), ("open", 0, (B_ENDING,)), ("resume", 0), ("sync", 0)],
            *[
                ("submit", 0, "whole"),
                ("sync", 2),
                ("close",),
                ("open", 1, ()),
                ("take_part", 2, "delayed"),
                ("sync", 2),
                ("arrive", 2),
                ("sync", 1),
                ("submit", 1, "crashed"),
                ("restart", 1),
            ],
        ],
    )


def check(members: tuple[World, list[SigningKey]], happened: list[tuple[object, ...]]) -> None:
    world, keys = members
    history = History(world, keys, f"expert-{next(NUMBERS)}")
    world.conductor().publish(genesis(LAYOUT, history.expert))
    history.play(happened)
    log = ExpertLog(world.aggregator.public, open_store(world.folder / "data"), world.ledger)
    expert, head = log.expert(history.expert), world.ledger.head(history.expert)
    merged_of = {key.keyid: np.zeros(LAYOUT.size) for key in keys}
    merged = np.zeros(LAYOUT.size)
    for number in range(1, head + 1):
        inputs = log.manifest(log.version(expert.name, number)).contributions
        total = sum(c.weight for c in inputs)
        for c in inputs:
            sent = densify(decode(log._encoded(expert, c.update_digest))).astype(np.float64)
            merged_of[c.keyid] += sent
            merged += c.weight / total * sent
        Versions(world.aggregator, open_store(world.folder / "data"), world.ledger).verify(expert.name, number)
    for who, key in enumerate(keys):
        directory = history.memory_of(who)
        residual = directory.residual(directory.load(), LAYOUT)
        np.testing.assert_allclose(merged_of[key.keyid] + residual, history.trained[who], atol=1e-3)
    published = log.state(expert, head).vector.astype(np.float64) - log.state(expert, 0).vector
    np.testing.assert_allclose(published + log.residual(expert, head), merged, atol=1e-3)


def test_another_rank_is_another_expert_with_a_residual_of_its_own(members: tuple[World, list[SigningKey]]) -> None:
    world, keys = members
    history = History(world, keys, "rank-3")
    world.conductor().publish(genesis(LAYOUT, "rank-3"))
    history.play([("open", 0, ()), ("sync", 0), ("submit", 0, "whole"), ("close",)])
    left = history.memory_of(0).load()

    other = layout_of({"q.lora_A.weight": (5, 8), "q.lora_B.weight": (6, 5), "h": (4,)}, dense=["h"])
    with pytest.raises(CompeftError, match="exists already"):
        world.conductor().publish(genesis(other, "rank-3"))
    world.conductor().publish(genesis(other, "rank-5"))
    with history.fresh(0) as client:
        client.sync("rank-5")
        opened = world.conductor().open_round("rank-5", "run", 1, 60.0)
        task = RoundTask("rank-5", "run", 1, opened.round_nonce, 0, Compression(0.3, "norm"))
        with pytest.raises(CompeftError, match="task vector has shape"):
            client.submit(task, Trained(np.ones(LAYOUT.size, np.float32), 100, {}, ORIGIN))
        client.submit(task, Trained(np.ones(other.size, np.float32), 100, {}, ORIGIN))
    assert opened.layout_digest == other.digest
    assert history.memory_of(0).load() == left, "what rank 3 left behind stays with rank 3"
