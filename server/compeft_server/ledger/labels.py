"""Labels of members by name, so that they stay when a member changes its key: only added, the newest holds; each has an audit entry."""

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from compeft_server.domain.price import Label
from compeft_server.ledger import audit, schema
from compeft_server.ledger.database import read

_table = schema.member_labels


class Labels:
    """The labels of one ledger."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def put(self, name: str, label: Label, now_ms: int) -> None:
        """Label a member; an earlier label no longer holds."""
        with self._engine.begin() as connection:
            audit.append(connection, audit.event(now_ms, "label", name, tenant=label.tenant, link=label.link))
            row = {"at_ms": now_ms, "name": name, "tenant": label.tenant, "link": label.link}
            connection.execute(sa.insert(_table), row)

    def all(self) -> dict[str, Label]:
        """The label of each member that has one, by name."""
        newest = sa.select(sa.func.max(_table.c.id)).group_by(_table.c.name)
        rows = read(self._engine, sa.select(_table).where(_table.c.id.in_(newest)).order_by(_table.c.name))
        return {r.name: Label(r.tenant, r.link) for r in rows}
