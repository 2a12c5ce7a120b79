"""The world of the exchange's tests: a real aggregator on a real port."""

from tests.rounds.conftest import EXPERT, World, synced_by, trained
from tests.rounds.conftest import world as world

__all__ = ["EXPERT", "World", "grow", "world"]


def grow(world: World, rounds: int) -> None:
    """As many more versions of the expert, merged from one client's updates."""
    client = world.edge("grower")
    for _ in range(rounds):
        number = world.ledger.head(EXPERT) + 1
        task = world.open_round(number)
        synced_by(client, task)
        client.submit(task, trained(number))
        world.close_round(number)
