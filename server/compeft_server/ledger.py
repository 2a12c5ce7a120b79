"""The ledger: append-only facts about keys, experts, rounds and bytes, in one SQL database.

Promises: when a method returns, what it recorded is durable; each method is one transaction, so a crash leaves all of it or
none; rows are only ever added, or completed once (a round closes, a submission is merged, a key is revoked). Byte counts are
stored, ratios are computed by whoever reads.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from compeft_proto.errors import ConflictError
from compeft_proto.keys import PublicKey
from compeft_proto.manifest import layout_from_proto, layout_to_proto
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server import audit, schema
from compeft_server.audit import Entry, Event
from compeft_server.database import open_engine
from compeft_server.facts import Expert, Member, Quality, Refusal, Role, Round, Sequences, Submission, Transfer, Version
from compeft_server.membership import Membership, withdraw

T = TypeVar("T")


class Ledger:
    """All tables of one aggregator."""

    def __init__(self, path: Path) -> None:
        self._engine = open_engine(path)
        self.membership = Membership(self._engine)

    def close(self) -> None:
        """Let go of the database file."""
        self._engine.dispose()

    # Keys

    def enrol(self, name: str, public: PublicKey, role: Role, now_ms: int) -> None:
        """Add a key. The same again is nothing; another name, role or key under one of them is a ConflictError."""
        known = [m for m in self.members() if (m.name == name and not m.revoked) or m.public == public]
        if known == [Member(name, public, role, revoked=False)]:
            return
        if known:
            raise ConflictError(
                f"{known[0].name!r} is enrolled with key {known[0].public.keyid} as {known[0].role}: revoke it first"
            )
        row = {"keyid": public.keyid, "public": public.raw, "name": name, "role": role, "enrolled_at_ms": now_ms}
        self._insert(schema.keys, row, audit.event(now_ms, "enrol", name, keyid=public.keyid, role=role))

    def revoke(self, name: str, now_ms: int) -> bool:
        """Refuse a member from now on, and whom its name was invited for. False if there is neither."""
        with self._engine.begin() as connection:
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
        table = schema.keys
        return [_member(row) for row in self._rows(sa.select(table).order_by(table.c.name, table.c.enrolled_at_ms.desc()))]

    def keyids(self, keyid: str) -> frozenset[str]:
        """The key itself and those that it took the place of, one after the other."""
        return frozenset(row.keyid for row in self._rows(_chain(keyid)))

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
        return [row.expert for row in self._rows(sa.select(schema.experts.c.expert).order_by(schema.experts.c.expert))]

    def create(self, expert: Expert, first: Version) -> None:
        """A new expert together with its version 0. Errors: ConflictError if the name is taken."""
        row = {
            "expert": expert.name,
            "base_model_digest": expert.base_model_digest,
            "adapter_config_digest": expert.adapter_config_digest,
            "layout": layout_to_proto(expert.layout).SerializeToString(),
            "layout_digest": expert.layout.digest,
            "created_at_ms": first.created_at_ms,
        }
        try:
            with self._engine.begin() as connection:
                audit.append(connection, _published(first))
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

    def append(self, version: Version) -> None:
        """One more version of an expert. Errors: ConflictError if that number is taken."""
        try:
            self._insert(schema.versions, _version_row(version), _published(version))
        except sa.exc.IntegrityError as error:
            raise ConflictError(f"{version.expert} has a version {version.version} already") from error

    # Rounds and submissions

    def open_round(self, opened: Round) -> None:
        """A new open round. Errors: ConflictError if it exists."""
        try:
            happened = audit.event(opened.opened_at_ms, "open round", opened.expert, run=opened.run, round=opened.round)
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
        """One more update for an open round."""
        happened = audit.event(
            submission.accepted_at_ms,
            "accept",
            submission.expert,
            round=submission.round,
            keyid=submission.keyid,
            update=submission.update_digest.hex(),
        )
        self._insert(schema.submissions, asdict(submission), happened)

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
        mine = sub.c.keyid.in_(_chain(keyid))
        row = self._rows(query.select_from(sub.join(rnd, same)).where(sub.c.expert == expert, mine))[0]
        return Sequences(int(row.merged or 0), int(row.waiting or 0), int(row.accepted or 0))

    def close_round(self, closing: Round, version: Version | None, merged: Sequence[bytes]) -> None:
        """Close a round and append the version it led to, at once; `merged` are the digests of the updates in it."""
        rounds, submissions = schema.rounds, schema.submissions
        with self._engine.begin() as connection:
            happened = audit.event(closing.closed_at_ms or 0, "close round", closing.expert, run=closing.run, round=closing.round)
            audit.append(connection, happened)
            if version is not None:
                audit.append(connection, _published(version))
                connection.execute(sa.insert(schema.versions), _version_row(version))
                connection.execute(
                    sa.update(submissions).where(submissions.c.update_digest.in_(merged)), {"merged_in": version.version}
                )
            connection.execute(
                sa.update(rounds).where(
                    rounds.c.expert == closing.expert, rounds.c.run == closing.run, rounds.c.round == closing.round
                ),
                {"closed_at_ms": closing.closed_at_ms, "version": closing.version},
            )

    # Facts for the report

    def record_transfer(self, transfer: Transfer) -> None:
        """Bytes that one call moved."""
        self._insert(schema.transfers, asdict(transfer))

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
        with self._engine.begin() as connection:
            if happened is not None:
                audit.append(connection, happened)
            connection.execute(sa.insert(table), row)

    def _rows(self, query: sa.Select[tuple[object, ...]]) -> Sequence[sa.Row[tuple[object, ...]]]:
        with self._engine.connect() as connection:
            return connection.execute(query).all()


def _chain(keyid: str) -> sa.Select[tuple[str]]:
    """The keyids of a key and of those that it succeeds."""
    table = schema.keys
    own = sa.select(table.c.keyid, table.c.succeeds).where(table.c.keyid == keyid).cte("chain", recursive=True)
    before = sa.select(table.c.keyid, table.c.succeeds).where(table.c.keyid == own.c.succeeds)
    return sa.select(own.union(before).c.keyid)


def _first(rows: list[T]) -> T | None:
    return rows[0] if rows else None


def _published(version: Version) -> Event:
    digest = version.state_digest.hex()
    return audit.event(version.created_at_ms, "publish", version.expert, version=version.version, state=digest)


def _member(row: sa.Row[tuple[object, ...]]) -> Member:
    return Member(row.name, PublicKey(row.public), row.role, revoked=row.revoked_at_ms is not None)


def _expert(row: sa.Row[tuple[object, ...]]) -> Expert:
    layout = layout_from_proto(pb.Layout.FromString(row.layout))
    return Expert(row.expert, row.base_model_digest, row.adapter_config_digest, layout)


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
