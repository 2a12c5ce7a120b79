"""A real aggregator for the tests of serving."""

from tests.rounds.conftest import world as world
