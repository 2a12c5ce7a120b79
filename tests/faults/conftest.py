"""The aggregator of the exchange's tests, for these tests too."""

from tests.rounds.conftest import world

__all__ = ["world"]
