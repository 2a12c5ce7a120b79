"""An expert belongs to one base model: anything else is a hard error that names both, on both sides."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from compeft_client.exchange.edge_client import EdgeClient
from compeft_core.errors import FormatError
from compeft_proto.base_model import base_model_to_proto
from compeft_proto.errors import WrongBaseError
from compeft_proto.round_task import Origin
from compeft_proto.v1 import expert_pb2 as pb
from tests.rounds.conftest import ORIGIN, genesis
from tests.server.policy.conftest import World, synced_by, trained

BOUND = replace(ORIGIN, base_model="org/base", base_revision="r1")
NAMED = "named"


@pytest.fixture
def client(world: World) -> EdgeClient:
    """An edge client of an aggregator with an expert whose base model has a name and a revision."""
    made = genesis(expert=NAMED)
    made.base_model.CopyFrom(base_model_to_proto(BOUND) or pb.BaseModel())
    world.conductor().publish(made)
    return world.edge("edge")


MISMATCHES = [
    (replace(BOUND, base_model_digest=b"\x02" * 32), r"org/base at r1 \(weights 0202020202020202\)"),
    (replace(BOUND, base_model="org/other"), r"org/other at r1 \(weights 0101010101010101\)"),
    (replace(BOUND, base_revision="r2"), r"org/base at r2 \(weights 0101010101010101\)"),
    (Origin(b"\x02" * 32, ORIGIN.adapter_config), r"of no name \(weights 0202020202020202\)"),
]
BOTH = r"trained on base model {}, named is bound to org/base at r1 \(weights 0101010101010101\)"


@pytest.mark.parametrize(("origin", "words"), MISMATCHES)
def test_a_client_with_another_base_model_does_not_sync(world: World, client: EdgeClient, origin: Origin, words: str) -> None:
    with pytest.raises(WrongBaseError, match=BOTH.format(words)):
        client.sync(NAMED, origin=origin)
    assert not list((world.folder / "state-edge" / NAMED).glob("state.json")), "nothing was kept"


@pytest.mark.parametrize(("origin", "words"), MISMATCHES)
def test_an_update_trained_on_another_base_model_is_refused(world: World, client: EdgeClient, origin: Origin, words: str) -> None:
    opened = world.conductor().open_round(NAMED, "run", 1, 60.0)
    task = replace(world.open_round(), expert=NAMED, run="run", nonce=opened.round_nonce)
    synced_by(client, task)
    with pytest.raises(WrongBaseError, match=BOTH.format(words)):
        client.submit(task, replace(trained(1), origin=origin))


@pytest.mark.parametrize("origin", [BOUND, ORIGIN, replace(BOUND, base_revision=""), Origin()])
def test_the_same_weights_pass_where_one_side_says_no_more(client: EdgeClient, origin: Origin) -> None:
    assert client.sync(NAMED, origin=origin).version == 0
    assert client.sync(NAMED, origin=origin).version == 0, "and again, from memory"


def test_a_client_that_has_the_expert_already_is_stopped_too(client: EdgeClient) -> None:
    client.sync(NAMED)
    with pytest.raises(WrongBaseError, match="bound to org/base"):
        client.sync(NAMED, origin=replace(BOUND, base_model="org/other"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: setattr(g.base_model, "weights_digest", b"\x09" * 32), "base_model_digest says"),
        (lambda g: setattr(g.base_model, "id", "a\nb"), "printable"),
        (lambda g: setattr(g.base_model, "revision", "x" * 257), "up to 256"),
    ],
)
def test_a_genesis_that_contradicts_itself_is_refused(world: World, change: Callable[[pb.Genesis], None], words: str) -> None:
    wrong = genesis(expert="wrong")
    change(wrong)
    with pytest.raises(FormatError, match=words):
        world.conductor().publish(wrong)
    assert world.ledger.expert("wrong") is None
