"""What an operator has said about experts: rules of the policy, where channels point, what is retired. And who fetched what.

Rows are only ever added. Each write is one transaction with its entry in the audit log: neither exists without the other.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from compeft_server.domain.channels import Move
from compeft_server.domain.policy import EVERY, Retirement, Rule
from compeft_server.ledger import audit, schema
from compeft_server.ledger.audit import Event

MOST_KEPT = 1024
_SAID = (schema.rules, schema.channel_moves, schema.retirements)
_NEWEST = sa.select(*(sa.select(sa.func.max(table.c.id)).scalar_subquery().label(table.name) for table in _SAID))
"""The newest number in each table. Rows are only ever added, so while these stand, so does everything that was read."""


@dataclass(frozen=True, slots=True)
class Word:
    """All decisions about one expert, oldest first; `upto` are the newest numbers when it was read."""

    upto: tuple[object, ...]
    rules: Sequence[Rule]
    moves: Sequence[Move]
    retirements: Sequence[Retirement]


class Terms:
    """The operator's decisions about the experts of one ledger."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kept: dict[str, Word] = {}

    def word(self, expert: str) -> Word:
        """All decisions about an expert up to now. They are read again only after a new one."""
        upto, kept = tuple(self._rows(_NEWEST)[0]), self._kept.get(expert)
        if kept is None or kept.upto != upto:
            kept = Word(upto, self.rules(expert), self.channel_moves(expert), self.retirements(expert))
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[expert] = kept
        return kept

    def add_rule(self, rule: Rule) -> Rule:
        """One more rule; its number is given here."""
        row = asdict(rule)
        del row["number"]
        with self._engine.begin() as connection:
            audit.append(connection, _said(rule))
            added = connection.execute(sa.insert(schema.rules), row)
            return Rule(number=int((added.inserted_primary_key or (0,))[0]), **row)

    def rules(self, expert: str | None = None) -> list[Rule]:
        """All rules by number, those of before included; or those that speak of one expert."""
        table = schema.rules
        query = sa.select(table).order_by(table.c.id)
        if expert is not None:
            query = query.where(table.c.expert.in_((expert, EVERY)))
        rows = [dict(row._mapping) for row in self._rows(query)]
        return [Rule(number=row.pop("id"), **row) for row in rows]

    def move_channel(self, move: Move) -> None:
        """Make a channel point at a version that exists."""
        happened = audit.event(move.at_ms, "promote", move.expert, channel=move.channel, version=move.version)
        self._add(schema.channel_moves, asdict(move), happened)

    def channel_moves(self, expert: str) -> list[Move]:
        """All moves of an expert's channels, oldest first."""
        table = schema.channel_moves
        rows = self._rows(sa.select(table).where(table.c.expert == expert).order_by(table.c.id))
        return [Move(row.at_ms, row.expert, row.channel, row.version) for row in rows]

    def retire(self, retirement: Retirement) -> None:
        """Retire an expert or a version that exists, or take that back."""
        action = "retire" if retirement.retired else "unretire"
        self._add(
            schema.retirements,
            asdict(retirement),
            audit.event(retirement.at_ms, action, retirement.expert, version=retirement.version),
        )

    def retirements(self, expert: str) -> list[Retirement]:
        """All retirements of an expert and its versions, oldest first."""
        table = schema.retirements
        rows = self._rows(sa.select(table).where(table.c.expert == expert).order_by(table.c.id))
        return [Retirement(row.at_ms, row.expert, row.version, row.retired) for row in rows]

    def record_fetch(self, expert: str, version: int, keyid: str, reason: str, now_ms: int) -> None:
        """A key was given a version. Only its first time is recorded, so the log grows with what is published, not with what is asked."""
        table = schema.fetches
        same = (table.c.expert == expert, table.c.version == version, table.c.keyid == keyid)
        if self._rows(sa.select(table.c.at_ms).where(*same)):
            return
        happened = audit.event(now_ms, "fetch", expert, version=version, keyid=keyid, reason=reason)
        try:
            self._add(table, {"expert": expert, "version": version, "keyid": keyid, "at_ms": now_ms}, happened)
        except sa.exc.IntegrityError:  # another replica was first
            return

    def _add(self, table: sa.Table, row: dict[str, object], happened: Event) -> None:
        with self._engine.begin() as connection:
            audit.append(connection, happened)
            connection.execute(sa.insert(table), row)

    def _rows(self, query: sa.Select[tuple[object, ...]]) -> Sequence[sa.Row[tuple[object, ...]]]:
        with self._engine.connect() as connection:
            return connection.execute(query).all()


def _said(rule: Rule) -> Event:
    limits = {"from_version": rule.from_version, "until_ms": rule.until_ms, "channel": rule.channel}
    given = {name: value for name, value in limits.items() if value}
    return audit.event(rule.at_ms, rule.effect, rule.expert, who=rule.who, may=rule.action, **given)
