"""The queries behind one arriving update, built once: its round, what its client has in that round, how far the client has come.

Each is answered from an index, whatever the number of clients and rounds.
"""

import sqlalchemy as sa

from compeft_server.ledger import schema

_rounds, _submissions, _settled = schema.rounds, schema.submissions, schema.settled


def chain(keyid: str | sa.BindParameter[str]) -> sa.Select[tuple[str]]:
    """The keyids of a key and of those that it succeeds."""
    table = schema.keys
    own = sa.select(table.c.keyid, table.c.succeeds).where(table.c.keyid == keyid).cte("chain", recursive=True)
    before = sa.select(table.c.keyid, table.c.succeeds).where(table.c.keyid == own.c.succeeds)
    return sa.select(own.union(before).c.keyid)


_chain = chain(sa.bindparam("keyid", type_=sa.String))
_mine = _submissions.c.keyid.in_(_chain)


def _newest(table: sa.Table) -> sa.ScalarSelect[int]:
    mine = (table.c.expert == sa.bindparam("expert"), table.c.keyid.in_(_chain))
    return sa.select(sa.func.max(table.c.sequence)).where(*mine).scalar_subquery()


ROUND = sa.select(_rounds, _newest(_submissions).label("accepted_sequence"), _newest(_settled).label("settled_sequence")).where(
    _rounds.c.expert == sa.bindparam("expert"),
    _rounds.c.run == sa.bindparam("run"),
    _rounds.c.round == sa.bindparam("round"),
)
"""The round by expert, run and number, and the client's newest sequence numbers for the expert: accepted, settled."""

STILL_OPEN = sa.select(_rounds.c.round).where(
    _rounds.c.expert == sa.bindparam("expert"),
    _rounds.c.run == sa.bindparam("run"),
    _rounds.c.round == sa.bindparam("round"),
    _rounds.c.closed_at_ms.is_(None),
)
"""The round by expert, run and number, if it is open."""

SUBMISSIONS = sa.select(_submissions).where(
    sa.or_(
        _submissions.c.update_digest == sa.bindparam("update_digest"),
        sa.and_(
            _submissions.c.expert == sa.bindparam("expert"),
            _submissions.c.run == sa.bindparam("run"),
            _submissions.c.round == sa.bindparam("round"),
            _mine,
        ),
    )
)
"""The accepted update of this digest, and any other of the client in the round."""
