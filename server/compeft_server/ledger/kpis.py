"""Business metrics of experts over time, as an operator states them. A value at a time is stated once; each write has an audit entry."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from compeft_proto.errors import ConflictError
from compeft_server.domain.kpi import Kpi, KpiSeries, KpiValue
from compeft_server.ledger import audit, schema
from compeft_server.ledger.database import read

_kpis, _values = schema.kpis, schema.kpi_values


class Kpis:
    """The KPI series of one ledger."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, kpi: Kpi, values: Sequence[KpiValue], now_ms: int) -> int:
        """Add values to a series, which is made if it is new; how many were new. The same value again is nothing.

        Unit, goal and baseline that are given replace those before. Errors: ConflictError if another value stands at one of these times.
        """
        with self._engine.begin() as connection:
            audit.append(connection, audit.event(now_ms, "add kpi", kpi.expert, name=kpi.name, values=len(values)))
            self._describe(connection, kpi)
            where = (_values.c.expert == kpi.expert, _values.c.name == kpi.name)
            known = {r.at_ms: r.value for r in connection.execute(sa.select(_values.c.at_ms, _values.c.value).where(*where))}
            new: dict[int, float] = {}
            for stated in values:
                before = known.get(stated.at_ms, new.get(stated.at_ms, stated.value))
                if before != stated.value:
                    raise ConflictError(
                        f"{kpi.name!a} of {kpi.expert} at {stated.at_ms} ms is {before}, not {stated.value}: a value is never changed"
                    )
                if stated.at_ms not in known:
                    new[stated.at_ms] = stated.value
            if new:
                rows = [{"expert": kpi.expert, "name": kpi.name, "at_ms": at, "value": value} for at, value in new.items()]
                connection.execute(sa.insert(_values), rows)
            return len(new)

    def series(self, expert: str) -> list[KpiSeries]:
        """All series of an expert by name, values oldest first."""
        found = read(self._engine, sa.select(_kpis).where(_kpis.c.expert == expert).order_by(_kpis.c.name))
        rows = read(self._engine, sa.select(_values).where(_values.c.expert == expert).order_by(_values.c.at_ms))
        values = {r.name: tuple(KpiValue(v.at_ms, v.value) for v in rows if v.name == r.name) for r in found}
        return [KpiSeries(Kpi(**r._mapping), values[r.name]) for r in found]

    def _describe(self, connection: sa.Connection, kpi: Kpi) -> None:
        where = (_kpis.c.expert == kpi.expert, _kpis.c.name == kpi.name)
        row = connection.execute(sa.select(_kpis).where(*where)).one_or_none()
        if row is None:
            connection.execute(sa.insert(_kpis), asdict(kpi))
            return
        before = Kpi(**row._mapping)
        after = replace(
            before,
            unit=kpi.unit or before.unit,
            goal=before.goal if kpi.goal is None else kpi.goal,
            baseline=before.baseline if kpi.baseline is None else kpi.baseline,
        )
        connection.execute(sa.update(_kpis).where(*where), asdict(after))
