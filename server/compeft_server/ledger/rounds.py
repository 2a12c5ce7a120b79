"""Rounds and the updates submitted to them, as rows, and the queries behind one arriving update. Promises: those of ledger.py.

The queries are built once: its round, what its client has in that round, how far the client has come. Each is answered from an index,
whatever the number of clients and rounds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import sqlalchemy as sa

from compeft_proto.errors import BusyError, ConflictError, DuplicateError, RoundClosedError
from compeft_server.domain.private_rounds import PrivateRound
from compeft_server.domain.records import Round, Sequences, Standing, Submission, Version
from compeft_server.ledger import audit, schema
from compeft_server.ledger.group_commit import INSERTS, Tables, add_row, first
from compeft_server.ledger.private_rounds import add_private, complete_private
from compeft_server.ledger.versions import published, version_row

MAX_SEQUENCE = 2**63 - 1
"""The largest number that a column holds."""
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


class RoundRows(Tables):
    """Rounds and submissions."""

    def open_round(self, opened: Round, private: PrivateRound | None = None) -> None:
        """A new open round, and its terms if it is private. Errors: ConflictError if it exists."""
        terms = {} if private is None else {"privacy": private.terms, "clip": private.clip}
        happened = audit.event(opened.opened_at_ms, "open round", opened.expert, run=opened.run, round=opened.round, **terms)

        def write(connection: sa.Connection) -> None:
            add_row(connection, schema.rounds, asdict(opened), happened)
            if private is not None:
                add_private(connection, private)

        try:
            self._writes.write(write)
        except sa.exc.IntegrityError as error:
            raise ConflictError(f"round {opened.round} of run {opened.run!r} exists already") from error

    def round(self, expert: str, run: str, number: int) -> Round | None:
        """One round, open or closed."""
        table = schema.rounds
        where = (table.c.expert == expert, table.c.run == run, table.c.round == number)
        return first([Round(**row._mapping) for row in self._rows(sa.select(table).where(*where))])

    def rounds(self, expert: str) -> list[Round]:
        """All rounds of an expert, open or closed, in the order of their opening."""
        table = schema.rounds
        query = sa.select(table).where(table.c.expert == expert).order_by(table.c.opened_at_ms, table.c.round)
        return [Round(**row._mapping) for row in self._rows(query)]

    def accept(self, submission: Submission) -> None:
        """One more update for an open round. Errors: RoundClosedError if it was closed meanwhile; DuplicateError if another update
        of this client is in; BusyError if this very one is, just recorded by another process.
        """
        happened = audit.event(
            submission.accepted_at_ms,
            "accept",
            submission.expert,
            round=submission.round,
            keyid=submission.keyid,
            update=submission.update_digest.hex(),
        )
        row, round_ = asdict(submission), f"round {submission.round} of run {submission.run!r}"

        def write(connection: sa.Connection) -> None:
            audit.append(connection, happened)
            if not connection.execute(STILL_OPEN, _place(submission)).first():
                raise RoundClosedError(f"{round_} was closed while the update arrived")
            connection.execute(INSERTS[schema.submissions.name], row)

        try:
            self._writes.write(write)
        except sa.exc.IntegrityError as error:
            if self.submission(submission.update_digest) is not None:
                raise BusyError(f"this update for {round_} was recorded just now: submit again for its receipt") from error
            raise DuplicateError(f"key {submission.keyid} has sent another update for {round_} already") from error

    def submission(self, update_digest: bytes) -> Submission | None:
        """The accepted update of this digest."""
        table = schema.submissions
        rows = self._rows(sa.select(table).where(table.c.update_digest == update_digest))
        return first([Submission(**row._mapping) for row in rows])

    def submissions(self, expert: str, run: str, number: int) -> list[Submission]:
        """The accepted updates of one round, by digest."""
        table = schema.submissions
        where = (table.c.expert == expert, table.c.run == run, table.c.round == number)
        rows = self._rows(sa.select(table).where(*where).order_by(table.c.update_digest))
        return [Submission(**row._mapping) for row in rows]

    def sequences(self, expert: str, keyid: str) -> Sequences:
        """How far a client's updates have come, those under its earlier keys among them."""
        sub, rnd = schema.submissions, schema.rounds
        same = sa.and_(sub.c.expert == rnd.c.expert, sub.c.run == rnd.c.run, sub.c.round == rnd.c.round)
        query = sa.select(
            sa.func.max(sa.case((sub.c.merged_in.is_not(None), sub.c.sequence))).label("merged"),
            sa.func.max(sa.case((rnd.c.closed_at_ms.is_(None), sub.c.sequence))).label("waiting"),
            sa.func.max(sub.c.sequence).label("accepted"),
        )
        mine = sub.c.keyid.in_(chain(keyid))
        row = self._rows(query.select_from(sub.join(rnd, same)).where(sub.c.expert == expert, mine))[0]
        return Sequences(int(row.merged or 0), int(row.waiting or 0), int(row.accepted or 0))

    def settle(self, expert: str, keyid: str, sequence: int) -> None:
        """No update of the client with this number or an older one is accepted from now on: it was told so. The same again is nothing."""
        try:
            self._insert(schema.settled, {"expert": expert, "keyid": keyid, "sequence": min(sequence, MAX_SEQUENCE)})
        except sa.exc.IntegrityError:
            return

    def standing(self, expert: str, run: str, number: int, keyid: str, update_digest: bytes) -> Standing:
        """What matters when this update of this client arrives, in as few queries as it takes."""
        asked = {"expert": expert, "run": run, "round": number, "keyid": keyid, "update_digest": update_digest}
        with self._engine.connect() as connection:
            rounds = [dict(row._mapping) for row in connection.execute(ROUND, asked)]
            known = [Submission(**row._mapping) for row in connection.execute(SUBMISSIONS, asked)]
        spoken_for = [row.pop(name) or 0 for row in rounds for name in ("accepted_sequence", "settled_sequence")]
        return Standing(
            round=first([Round(**row) for row in rounds]),
            same=first([s for s in known if s.update_digest == update_digest]),
            other=first([s for s in known if s.update_digest != update_digest]),
            accepted_sequence=max(spoken_for, default=0),
        )

    def close_round(
        self, closing: Round, version: Version | None, merged: Sequence[bytes], private: PrivateRound | None = None
    ) -> None:
        """Close an open round and append the version it led to, at once; `merged` are the digests of the updates in it, `private` is what
        a private one was merged with.

        Errors: BusyError if another process has closed it, or has accepted an update that is not merged: close again; ConflictError
        if the version's number is taken.
        """
        rounds = schema.rounds
        this = (rounds.c.expert == closing.expert, rounds.c.run == closing.run, rounds.c.round == closing.round)
        happened = audit.event(closing.closed_at_ms or 0, "close round", closing.expert, run=closing.run, round=closing.round)
        try:
            with self._engine.begin() as connection:
                audit.append(connection, happened)
                if not connection.execute(STILL_OPEN, _place(closing)).first():
                    raise BusyError(f"round {closing.round} of run {closing.run!r} was closed just now: repeat the command")
                if version is not None:
                    audit.append(connection, published(version))
                    connection.execute(sa.insert(schema.versions), version_row(version))
                    _mark_merged(connection, closing, version.version, merged)
                    if private is not None:
                        complete_private(connection, private)
                closed = {"closed_at_ms": closing.closed_at_ms, "version": closing.version}
                connection.execute(sa.update(rounds).where(*this), closed)
        except sa.exc.IntegrityError as error:
            number = version.version if version else "?"
            raise ConflictError(f"{closing.expert} has a version {number} already") from error

    def submission_envelopes(self, expert: str) -> Iterator[bytes]:
        """The envelope of every accepted update of an expert, in no order."""
        table = schema.submissions
        return self._column(sa.select(table.c.envelope).where(table.c.expert == expert))


def _place(of: Round | Submission) -> dict[str, object]:
    return {"expert": of.expert, "run": of.run, "round": of.round}


def _mark_merged(connection: sa.Connection, closing: Round, version: int, merged: Sequence[bytes]) -> None:
    """Note where the updates of a round went. Errors: BusyError if the round has one that `merged` does not name."""
    table = schema.submissions
    of_round = (table.c.expert == closing.expert, table.c.run == closing.run, table.c.round == closing.round)
    accepted = set(connection.execute(sa.select(table.c.update_digest).where(*of_round)).scalars())
    if not accepted <= set(merged):
        raise BusyError(f"an update for round {closing.round} arrived while it was merged: repeat the command")
    connection.execute(sa.update(table).where(table.c.update_digest.in_(merged)), {"merged_in": version})
