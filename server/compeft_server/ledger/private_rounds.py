"""Private rounds as rows, and who contributed to them. Promises: those of ledger.py."""

from collections import Counter
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from compeft_server.domain.private_rounds import MemberRound, PrivateRound
from compeft_server.ledger import schema
from compeft_server.ledger.database import read

_private, _rounds, _submissions, _keys = schema.private_rounds, schema.rounds, schema.submissions, schema.keys
_SAME_ROUND = sa.and_(_private.c.expert == _rounds.c.expert, _private.c.run == _rounds.c.run, _private.c.round == _rounds.c.round)
_ITS_UPDATE = sa.and_(
    _private.c.expert == _submissions.c.expert, _private.c.run == _submissions.c.run, _private.c.round == _submissions.c.round
)


class PrivateRows:
    """The private rounds of one ledger."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def round(self, expert: str, run: str, number: int) -> PrivateRound | None:
        """The terms of one round, None if it is not private."""
        where = (_private.c.expert == expert, _private.c.run == run, _private.c.round == number)
        rows = read(self._engine, sa.select(_private).where(*where))
        return PrivateRound(**rows[0]._mapping) if rows else None

    def rounds(self, expert: str) -> list[tuple[PrivateRound, int, int | None]]:
        """All private rounds of an expert in the order of their opening, each with the number of its updates and its version."""
        answered = sa.select(sa.func.count()).select_from(_submissions).where(_ITS_UPDATE).scalar_subquery()
        query = sa.select(_private, answered.label("answered"), _rounds.c.version).select_from(
            _private.join(_rounds, _SAME_ROUND)
        )
        rows = read(self._engine, query.where(_private.c.expert == expert).order_by(_rounds.c.opened_at_ms, _rounds.c.round))
        names = [column.name for column in _private.c]
        return [(PrivateRound(**{n: row._mapping[n] for n in names}), row.answered, row.version) for row in rows]

    def under_way(self, data: str, but: str) -> list[PrivateRound]:
        """Private rounds on this data that are open, of other experts than `but`."""
        where = (_private.c.data == data, _private.c.expert != but, _rounds.c.closed_at_ms.is_(None))
        rows = read(self._engine, sa.select(_private).select_from(_private.join(_rounds, _SAME_ROUND)).where(*where))
        return [PrivateRound(**row._mapping) for row in rows]

    def contributed(self, data: str) -> list[MemberRound]:
        """Who contributed to which private round on this data, in every expert: merged updates of central rounds, accepted ones of
        local rounds, whether or not they were merged.
        """
        columns = (_keys.c.name, _private, _submissions.c.merged_in)
        source = _private.join(_submissions, _ITS_UPDATE).join(_keys, _keys.c.keyid == _submissions.c.keyid)
        rows = read(self._engine, sa.select(*columns).select_from(source).where(_private.c.data == data))
        found = []
        for row in rows:
            terms = PrivateRound(**{column.name: row._mapping[column.name] for column in _private.c}).privacy
            if terms.where == "local" or row.merged_in is not None:
                found.append(MemberRound(row.name, row.expert, row.run, row.round, terms.noise_multiplier, terms.sensitivity))
        return found

    def bare(self, data: str, expert: str) -> dict[str, int]:
        """Merged updates without noise by member: of `expert`, and of every expert where the data has no name."""
        source = _submissions.join(_keys, _keys.c.keyid == _submissions.c.keyid).outerjoin(_private, _ITS_UPDATE)
        where: list[sa.ColumnElement[bool]] = [_private.c.expert.is_(None), _submissions.c.merged_in.is_not(None)]
        if data:
            where.append(_submissions.c.expert == expert)
        return dict(Counter(row.name for row in read(self._engine, sa.select(_keys.c.name).select_from(source).where(*where))))


def add_private(connection: sa.Connection, private: PrivateRound) -> None:
    """The row of a round that is being opened."""
    connection.execute(sa.insert(_private), asdict(private))


def complete_private(connection: sa.Connection, private: PrivateRound) -> None:
    """Seed and next clip of a round that is being closed."""
    where = (_private.c.expert == private.expert, _private.c.run == private.run, _private.c.round == private.round)
    connection.execute(sa.update(_private).where(*where), {"seed": private.seed, "next_clip": private.next_clip})
