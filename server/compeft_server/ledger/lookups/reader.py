"""The base of every class of queries: reads one ledger."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from compeft_server.ledger.database import read
from compeft_server.ledger.ledger import Ledger


class LedgerReader:
    """Reads one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._engine = ledger.engine

    def _select(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        return read(self._engine, query)
