"""The aggregator of the exchange's tests, for these tests too."""

from tests.exchange.conftest import world

__all__ = ["world"]
