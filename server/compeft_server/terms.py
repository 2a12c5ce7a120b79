"""What an operator has said about experts: where channels point. Rows are only ever added.

Each write is one transaction with its entry in the audit log: neither exists without the other.
"""

from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from compeft_server import audit, schema
from compeft_server.audit import Event
from compeft_server.channels import Move


class Terms:
    """The operator's word on the experts of one ledger."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def move_channel(self, move: Move) -> None:
        """Make a channel point at a version that exists."""
        happened = audit.event(move.at_ms, "promote", move.expert, channel=move.channel, version=move.version)
        self._add(schema.channel_moves, asdict(move), happened)

    def channel_moves(self, expert: str) -> list[Move]:
        """All moves of an expert's channels, oldest first."""
        table = schema.channel_moves
        query = sa.select(table).where(table.c.expert == expert).order_by(table.c.id)
        with self._engine.connect() as connection:
            return [Move(row.at_ms, row.expert, row.channel, row.version) for row in connection.execute(query)]

    def _add(self, table: sa.Table, row: dict[str, object], happened: Event) -> None:
        with self._engine.begin() as connection:
            audit.append(connection, happened)
            connection.execute(sa.insert(table), row)
