"""The ledger: append-only facts about keys, experts, rounds and bytes, in one SQL database.

Promises: when a method returns, what it recorded is durable; each method is one transaction, so a crash leaves all of it or
none; rows are only ever added, or completed once (a round closes, a submission is merged, a key is revoked). Whatever is audited
happens one at a time, also where several processes share the database: each such transaction begins with `audit.append`, and what
it checks after that still holds when it ends. Byte counts are stored, ratios are computed by whoever reads.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from compeft_core.errors import InputError
from compeft_proto.convert import layout_from_proto, layout_to_proto
from compeft_proto.errors import BusyError, ConflictError, DuplicateError, RoundClosedError
from compeft_proto.keys import PublicKey
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.domain.policy import ROLE
from compeft_server.domain.records import (
    Expert,
    Member,
    Quality,
    Refusal,
    Role,
    Round,
    Sequences,
    Snapshot,
    Standing,
    Submission,
    Transfer,
    Version,
)
from compeft_server.ledger import audit, schema, submission_queries
from compeft_server.ledger.audit import Entry, Event
from compeft_server.ledger.database import open_engine, take_turn
from compeft_server.ledger.group_commit import GroupCommit
from compeft_server.ledger.kpis import Kpis
from compeft_server.ledger.members import Membership, withdraw
from compeft_server.ledger.policy_records import Terms

T = TypeVar("T")
INSERTS = {table.name: sa.insert(table) for table in schema.metadata.tables.values()}
"""Built once: building a statement takes longer than running it."""


MAX_SEQUENCE = 2**63 - 1
"""The largest number that a column holds."""


class Ledger:
    """All tables of one aggregator."""

    def __init__(self, database: str | Path) -> None:
        """The ledger in a SQLite file, or in the PostgreSQL of a URL. Errors: as `database.open_engine`."""
        self._engine = open_engine(database)
        self.engine = self._engine
        """For the readers of this folder: `totals.py`, `pages.py`."""
        self.membership = Membership(self._engine)
        self.terms = Terms(self._engine)
        self.kpis = Kpis(self._engine)
        self._writes = GroupCommit(self._engine)
        weakref.finalize(self, _let_go, self._writes, self._engine)  # a command that opens a ledger and ends need not close it

    def close(self) -> None:
        """Finish what was to be written, and let go of the database."""
        self._writes.close()
        self._engine.dispose()

    # Keys

    def enrol(self, name: str, public: PublicKey, role: Role, now_ms: int) -> None:
        """Add a key. The same again is nothing; another name, role or key under one of them is a ConflictError.

        A name that begins like a role of the policy is an InputError.
        """
        if name.startswith(ROLE):
            raise InputError(f"member name {name[:40]!a} begins like a role of the policy: choose another")
        known = [m for m in self.members() if (m.name == name and not m.revoked) or m.public == public]
        if known == [Member(name, public, role, revoked=False)]:
            return
        if known:
            raise ConflictError(
                f"{known[0].name!r} is enrolled with key {known[0].public.keyid} as {known[0].role}: revoke it first"
            )
        row = {"keyid": public.keyid, "public": public.raw, "name": name, "role": role, "enrolled_at_ms": now_ms}
        try:
            self._insert(schema.keys, row, audit.event(now_ms, "enrol", name, keyid=public.keyid, role=role))
        except sa.exc.IntegrityError as error:
            raise ConflictError(f"{name!r} or key {public.keyid} was enrolled by somebody else just now") from error

    def revoke(self, name: str, now_ms: int) -> bool:
        """Refuse a member from now on, and whom its name was invited for. False if there is neither."""
        with self._engine.begin() as connection:
            take_turn(connection)
            found = connection.execute(
                sa.update(schema.keys).where(schema.keys.c.name == name, schema.keys.c.revoked_at_ms.is_(None)),
                {"revoked_at_ms": now_ms},
            )
            changed = found.rowcount + withdraw(connection, name, now_ms)
            if changed:
                audit.append(connection, audit.event(now_ms, "revoke", name))
            return bool(changed)

    def members(self) -> list[Member]:
        """Everybody enrolled, by name; a member that changed its key has one entry for each, the newest first."""
        newest_first = self._rows(sa.select(schema.keys).order_by(schema.keys.c.enrolled_at_ms.desc()))
        return sorted((_member(row) for row in newest_first), key=lambda member: member.name)

    def member(self, keyid: str) -> Member | None:
        """The member with this key, revoked or not."""
        return _first([_member(row) for row in self._rows(sa.select(schema.keys).where(schema.keys.c.keyid == keyid))])

    # Experts and their versions

    def expert(self, name: str) -> Expert | None:
        """The expert of this name."""
        rows = self._rows(sa.select(schema.experts).where(schema.experts.c.expert == name))
        return _first([_expert(row) for row in rows])

    def experts(self) -> list[str]:
        """All names, sorted."""
        return sorted(row.expert for row in self._rows(sa.select(schema.experts.c.expert)))

    def create(self, expert: Expert, first: Version, publisher: str = "") -> None:
        """A new expert together with its version 0, and the keyid of who pushed it. Errors: ConflictError if the name is taken."""
        row = {
            "expert": expert.name,
            "base_model_digest": expert.base_model_digest,
            "adapter_config_digest": expert.adapter_config_digest,
            "layout": layout_to_proto(expert.layout).SerializeToString(),
            "layout_digest": expert.layout.digest,
            "created_at_ms": first.created_at_ms,
            "kind": expert.kind,
        }
        try:
            with self._engine.begin() as connection:
                audit.append(connection, _published(first, publisher))
                connection.execute(sa.insert(schema.experts), row)
                connection.execute(sa.insert(schema.versions), _version_row(first))
        except sa.exc.IntegrityError as error:
            raise ConflictError(f"expert {expert.name!r} exists already") from error

    def versions(self, expert: str, after: int, upto: int) -> list[Version]:
        """Versions `after` < v <= `upto`, oldest first."""
        table = schema.versions
        where = (table.c.expert == expert, table.c.version > after, table.c.version <= upto)
        return [_version(row) for row in self._rows(sa.select(table).where(*where).order_by(table.c.version))]

    def head(self, expert: str) -> int:
        """The newest version number; the expert must exist."""
        table = schema.versions
        rows = self._rows(sa.select(sa.func.max(table.c.version).label("head")).where(table.c.expert == expert))
        return int(rows[0].head)

    def append(self, version: Version, publisher: str = "") -> None:
        """One more version of an expert, and the keyid of who pushed it. Errors: ConflictError if that number is taken."""
        try:
            self._insert(schema.versions, _version_row(version), _published(version, publisher))
        except sa.exc.IntegrityError as error:
            raise ConflictError(f"{version.expert} has a version {version.version} already") from error

    def snapshot(self, expert: str, version: int) -> Snapshot | None:
        """The whole state at a version, if one was made."""
        table = schema.snapshots
        rows = self._rows(sa.select(table).where(table.c.expert == expert, table.c.version == version))
        return _first([Snapshot(**row._mapping) for row in rows])

    def keep_snapshot(self, made: Snapshot) -> None:
        """The whole state at a version, in place of one that was made before: what can be made again is no fact."""
        table = schema.snapshots
        with self._engine.begin() as connection:
            connection.execute(sa.delete(table).where(table.c.expert == made.expert, table.c.version == made.version))
            connection.execute(sa.insert(table), asdict(made))

    # Rounds and submissions

    def open_round(self, opened: Round) -> None:
        """A new open round. Errors: ConflictError if it exists."""
        happened = audit.event(opened.opened_at_ms, "open round", opened.expert, run=opened.run, round=opened.round)
        try:
            self._insert(schema.rounds, asdict(opened), happened)
        except sa.exc.IntegrityError as error:
            raise ConflictError(f"round {opened.round} of run {opened.run!r} exists already") from error

    def round(self, expert: str, run: str, number: int) -> Round | None:
        """One round, open or closed."""
        table = schema.rounds
        where = (table.c.expert == expert, table.c.run == run, table.c.round == number)
        return _first([Round(**row._mapping) for row in self._rows(sa.select(table).where(*where))])

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
            if not connection.execute(submission_queries.STILL_OPEN, _place(submission)).first():
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
        return _first([Submission(**row._mapping) for row in rows])

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
        mine = sub.c.keyid.in_(submission_queries.chain(keyid))
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
            rounds = [dict(row._mapping) for row in connection.execute(submission_queries.ROUND, asked)]
            known = [Submission(**row._mapping) for row in connection.execute(submission_queries.SUBMISSIONS, asked)]
        spoken_for = [row.pop(name) or 0 for row in rounds for name in ("accepted_sequence", "settled_sequence")]
        return Standing(
            round=_first([Round(**row) for row in rounds]),
            same=_first([s for s in known if s.update_digest == update_digest]),
            other=_first([s for s in known if s.update_digest != update_digest]),
            accepted_sequence=max(spoken_for, default=0),
        )

    def close_round(self, closing: Round, version: Version | None, merged: Sequence[bytes]) -> None:
        """Close an open round and append the version it led to, at once; `merged` are the digests of the updates in it.

        Errors: BusyError if another process has closed it, or has accepted an update that is not merged: close again; ConflictError
        if the version's number is taken.
        """
        rounds = schema.rounds
        this = (rounds.c.expert == closing.expert, rounds.c.run == closing.run, rounds.c.round == closing.round)
        happened = audit.event(closing.closed_at_ms or 0, "close round", closing.expert, run=closing.run, round=closing.round)
        try:
            with self._engine.begin() as connection:
                audit.append(connection, happened)
                if not connection.execute(submission_queries.STILL_OPEN, _place(closing)).first():
                    raise BusyError(f"round {closing.round} of run {closing.run!r} was closed just now: repeat the command")
                if version is not None:
                    audit.append(connection, _published(version))
                    connection.execute(sa.insert(schema.versions), _version_row(version))
                    _mark_merged(connection, closing, version.version, merged)
                closed = {"closed_at_ms": closing.closed_at_ms, "version": closing.version}
                connection.execute(sa.update(rounds).where(*this), closed)
        except sa.exc.IntegrityError as error:
            number = version.version if version else "?"
            raise ConflictError(f"{closing.expert} has a version {number} already") from error

    # Manifests, as they were signed

    def version_envelopes(self, expert: str) -> Iterator[bytes]:
        """The envelope of every version of an expert, oldest first."""
        table = schema.versions
        return self._column(sa.select(table.c.envelope).where(table.c.expert == expert).order_by(table.c.version))

    def submission_envelopes(self, expert: str) -> Iterator[bytes]:
        """The envelope of every accepted update of an expert, in no order."""
        table = schema.submissions
        return self._column(sa.select(table.c.envelope).where(table.c.expert == expert))

    def snapshot_envelopes(self, expert: str) -> Iterator[bytes]:
        """The envelope of every whole state that was made of an expert's versions, in no order."""
        table = schema.snapshots
        return self._column(sa.select(table.c.envelope).where(table.c.expert == expert))

    # Facts for the report

    def record_transfer(self, transfer: Transfer) -> None:
        """Bytes that one call moved."""
        self._insert(schema.transfers, asdict(transfer))

    def note_transfer(self, transfer: Transfer) -> None:
        """The same without waiting: it is durable a moment later, and lost if the process is killed in that moment."""
        row = asdict(transfer)
        self._writes.ask(lambda connection: _add(connection, schema.transfers, row, None))

    def record_refusal(self, refusal: Refusal) -> None:
        """A submission that was not taken."""
        happened = audit.event(
            refusal.at_ms, "refuse", refusal.expert, peer=refusal.peer, code=refusal.code, reason=refusal.reason
        )
        self._insert(schema.refusals, asdict(refusal), happened)

    def record_quality(self, quality: Quality) -> None:
        """A task metric. The same arm, client and metric at the same version again is nothing: the first report stands."""
        try:
            self._insert(schema.quality, asdict(quality))
        except sa.exc.IntegrityError:
            return

    def transfers(self, expert: str) -> list[Transfer]:
        """All transfers of an expert in the order of recording."""
        return self._facts(schema.transfers, Transfer, expert)

    def refusals(self, expert: str) -> list[Refusal]:
        """All refusals that named this expert in the order of recording."""
        return self._facts(schema.refusals, Refusal, expert)

    def quality(self, expert: str) -> list[Quality]:
        """All task metrics of an expert in the order of recording."""
        return self._facts(schema.quality, Quality, expert)

    def _facts(self, table: sa.Table, fact: type[T], expert: str) -> list[T]:
        columns = [c for c in table.c if c.name != "id"]
        query = sa.select(*columns).where(table.c.expert == expert).order_by(table.c.id)
        return [fact(**row._mapping) for row in self._rows(query)]

    def audit_entries(self) -> list[Entry]:
        """The audit log, oldest first."""
        rows = self._rows(sa.select(schema.audit).order_by(schema.audit.c.id))
        return [Entry(row.id, Event(row.at_ms, row.action, row.subject, row.detail), row.hash) for row in rows]

    def _insert(self, table: sa.Table, row: dict[str, object], happened: Event | None = None) -> None:
        self._writes.write(lambda connection: _add(connection, table, row, happened))

    def _column(self, query: sa.Select[bytes]) -> Iterator[bytes]:
        with self._engine.connect() as connection:
            yield from connection.execution_options(yield_per=1000).execute(query).scalars()

    def _rows(self, query: sa.Select[tuple[object, ...]]) -> Sequence[sa.Row[tuple[object, ...]]]:
        with self._engine.connect() as connection:
            return connection.execute(query).all()


def _add(connection: sa.Connection, table: sa.Table, row: dict[str, object], happened: Event | None) -> None:
    if happened is not None:
        audit.append(connection, happened)
    connection.execute(INSERTS[table.name], row)


def _place(of: Round | Submission) -> dict[str, object]:
    return {"expert": of.expert, "run": of.run, "round": of.round}


def _let_go(writes: GroupCommit, engine: sa.Engine) -> None:
    writes.close()
    engine.dispose()


def _first(rows: list[T]) -> T | None:
    return rows[0] if rows else None


def _mark_merged(connection: sa.Connection, closing: Round, version: int, merged: Sequence[bytes]) -> None:
    """Note where the updates of a round went. Errors: BusyError if the round has one that `merged` does not name."""
    table = schema.submissions
    of_round = (table.c.expert == closing.expert, table.c.run == closing.run, table.c.round == closing.round)
    accepted = set(connection.execute(sa.select(table.c.update_digest).where(*of_round)).scalars())
    if not accepted <= set(merged):
        raise BusyError(f"an update for round {closing.round} arrived while it was merged: repeat the command")
    connection.execute(sa.update(table).where(table.c.update_digest.in_(merged)), {"merged_in": version})


def _published(version: Version, publisher: str = "") -> Event:
    detail: dict[str, object] = {"version": version.version, "state": version.state_digest.hex()}
    detail |= {"publisher": publisher} if publisher else {}
    return audit.event(version.created_at_ms, "publish", version.expert, **detail)


def _member(row: sa.Row[tuple[object, ...]]) -> Member:
    return Member(row.name, PublicKey(row.public), row.role, revoked=row.revoked_at_ms is not None)


def _expert(row: sa.Row[tuple[object, ...]]) -> Expert:
    layout = layout_from_proto(pb.Layout.FromString(row.layout))
    return Expert(row.expert, row.base_model_digest, row.adapter_config_digest, layout, row.kind)


def _version(row: sa.Row[tuple[object, ...]]) -> Version:
    values = dict(row._mapping)
    residual, moments = (_digests(values.pop(name)) for name in ("residual_chunks", "moment_chunks"))
    return Version(residual=residual, moments=moments, **values)


def _digests(chunks: bytes) -> tuple[bytes, ...]:
    return tuple(chunks[i : i + 32] for i in range(0, len(chunks), 32))


def _version_row(version: Version) -> dict[str, object]:
    row = asdict(version)
    row["residual_chunks"], row["moment_chunks"] = b"".join(row.pop("residual")), b"".join(row.pop("moments"))
    return row
