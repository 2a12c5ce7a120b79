"""The live page beside the report."""

from tests.server.dashboard.conftest import serving

__all__ = ["serving"]
