"""Reports of members' pools: of each pool the newest of every hour, so that a pool that reports each minute adds 24 rows a day."""

import json
from dataclasses import asdict, fields

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from compeft_server.domain.pools import InMemory, PoolUse
from compeft_server.ledger import schema
from compeft_server.ledger.database import read

HOUR_MS = 3_600_000
_table = schema.pool_reports


class Pools:
    """The pool reports of one ledger."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(self, use: PoolUse) -> None:
        """Keep a report in the place of an older one of the same pool and hour."""
        row = asdict(use) | {"hour": use.at_ms // HOUR_MS}
        row["experts"] = json.dumps([[e.name, e.sha256, e.held_bytes] for e in use.experts])
        place = (_table.c.keyid == use.keyid, _table.c.pool == use.pool, _table.c.hour == row["hour"])
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_table).where(*place))
            connection.execute(sa.insert(_table), row)

    def newest(self) -> list[PoolUse]:
        """The newest report of each pool, by member and pool."""
        last = sa.select(_table.c.keyid, _table.c.pool, sa.func.max(_table.c.hour).label("hour"))
        found = last.group_by(_table.c.keyid, _table.c.pool).subquery()
        same = sa.and_(_table.c.keyid == found.c.keyid, _table.c.pool == found.c.pool, _table.c.hour == found.c.hour)
        query = sa.select(_table).join(found, same).order_by(_table.c.keyid, _table.c.pool)
        return [_use(row) for row in read(self._engine, query)]


def _use(row: sa.Row[tuple[object, ...]]) -> PoolUse:
    values = {f.name: row._mapping[f.name] for f in fields(PoolUse) if f.name != "experts"}
    return PoolUse(**values, experts=tuple(InMemory(*e) for e in json.loads(row._mapping["experts"])))
