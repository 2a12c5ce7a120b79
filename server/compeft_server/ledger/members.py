"""Invitations, certificates and changes of key in the ledger's database. The rules are enrolment.py.

Promises: those of ledger.py: one transaction a method, durable when it returns, with its entry in the audit log. Of an invitation only the
SHA-256 of its secret is kept.
"""

from typing import cast

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from compeft_core.errors import InputError
from compeft_proto.errors import ConflictError, UnknownKeyError
from compeft_proto.keys import PublicKey
from compeft_server.domain.policy import ROLE
from compeft_server.domain.records import Certified, Enrolled, Invited, Member, Role
from compeft_server.ledger import audit, schema
from compeft_server.ledger.database import take_turn
from compeft_server.ledger.group_commit import Tables, first


class KeyRows(Tables):
    """Who is enrolled, by key."""

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
            raise ConflictError(f"{name!r} or key {public.keyid} was enrolled by another call just now") from error

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
        return first([_member(row) for row in self._rows(sa.select(schema.keys).where(schema.keys.c.keyid == keyid))])


class Membership:
    """How members come, stay and change their keys."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def invite(self, invited: Invited, now_ms: int) -> None:
        """A new invitation; an earlier, unused one of the same name is withdrawn. Errors: ConflictError if the name is enrolled."""
        table = schema.invitations
        with self._engine.begin() as connection:
            audit.append(connection, audit.event(now_ms, "invite", invited.name, role=invited.role, invitation=invited.number))
            if _in_force(connection, invited.name):
                raise ConflictError(f"{invited.name!r} is enrolled: revoke it first, or invite another name")
            withdraw(connection, invited.name, now_ms)
            row = {
                "number": invited.number,
                "secret_digest": invited.secret_digest,
                "name": invited.name,
                "role": invited.role,
                "created_at_ms": now_ms,
                "expires_at_ms": invited.expires_at_ms,
            }
            connection.execute(sa.insert(table), row)

    def invited(self, number: str) -> Invited | None:
        """The invitation of this number."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(schema.invitations).where(schema.invitations.c.number == number)).one_or_none()
        if row is None:
            return None
        role = cast(Role, row.role)
        withdrawn = row.withdrawn_at_ms is not None
        return Invited(row.number, row.secret_digest, row.name, role, row.expires_at_ms, withdrawn, row.used_by or "")

    def awaited(self) -> set[str]:
        """The names that were invited and have not come yet."""
        table = schema.invitations
        query = sa.select(table.c.name).where(table.c.used_by.is_(None), table.c.withdrawn_at_ms.is_(None))
        with self._engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def redeem(self, invited: Invited, public: PublicKey, certified: Certified | None, now_ms: int) -> None:
        """Enrol a key by its invitation, which is then used; the same key again only gets its new certificate noted.

        Errors: ConflictError if another key was faster, or the name or key is enrolled otherwise.
        """
        table, keyid = schema.invitations, public.keyid
        unused = sa.or_(table.c.used_by.is_(None), table.c.used_by == keyid)
        mine = sa.update(table).where(table.c.number == invited.number, table.c.withdrawn_at_ms.is_(None), unused)
        detail = {"keyid": keyid, "role": invited.role, "invitation": invited.number}
        with self._engine.begin() as connection:
            audit.append(connection, audit.event(now_ms, "enrol", invited.name, **detail))
            if not connection.execute(mine, {"used_by": keyid, "used_at_ms": now_ms}).rowcount:
                raise ConflictError(f"invitation {invited.number} was used just now")
            known = connection.execute(sa.select(schema.keys).where(schema.keys.c.keyid == keyid)).one_or_none()
            if known is None:
                _add_key(connection, invited.name, public, invited.role, now_ms)
            elif known.revoked_at_ms is not None or known.name != invited.name:
                raise ConflictError(f"key {keyid} was enrolled before as {known.name!r}")
            _note(connection, keyid, certified, now_ms)

    def renew(self, member: Member, new: PublicKey | None, certified: Certified | None, now_ms: int) -> None:
        """A new certificate for a member, and a new key in the place of the one it has, if it brings one.

        Errors: UnknownKeyError if it was revoked just now; ConflictError if the new key is enrolled already.
        """
        keyid, table = member.public.keyid, schema.keys
        detail = {"keyid": keyid} | ({"new_keyid": new.keyid} if new else {})
        with self._engine.begin() as connection:
            audit.append(connection, audit.event(now_ms, "renew", member.name, **detail))
            valid = sa.select(table.c.keyid).where(table.c.keyid == keyid, table.c.revoked_at_ms.is_(None))
            if connection.execute(valid).one_or_none() is None:
                raise UnknownKeyError(f"key {keyid} was revoked just now")
            if new is not None:
                connection.execute(sa.update(table).where(table.c.keyid == keyid), {"revoked_at_ms": now_ms})
                _add_key(connection, member.name, new, member.role, now_ms, succeeds=keyid)
            _note(connection, (new or member.public).keyid, certified, now_ms)

    def refuse(self, host: str, reason: str, now_ms: int) -> None:
        """An attempt to enrol that was not let in."""
        self.note("refuse to enrol", host[:256], now_ms, reason=reason)

    def note(self, action: str, subject: str, now_ms: int, **detail: object) -> None:
        """Something that was decided about keys or authorities, for the audit log."""
        with self._engine.begin() as connection:
            audit.append(connection, audit.event(now_ms, action, subject, **detail))

    def enrolled(self) -> list[Enrolled]:
        """Every key that ever was enrolled, by name and time."""
        keys, certificates = schema.keys, schema.certificates
        newest = sa.select(certificates.c.keyid, sa.func.max(certificates.c.expires_at_ms).label("ends"))
        ends = newest.group_by(certificates.c.keyid).subquery()
        after = sa.select(keys.c.succeeds, keys.c.keyid.label("successor")).where(keys.c.succeeds.is_not(None)).subquery()
        joined = keys.outerjoin(ends, keys.c.keyid == ends.c.keyid).outerjoin(after, keys.c.keyid == after.c.succeeds)
        query = sa.select(keys, ends.c.ends, after.c.successor).select_from(joined).order_by(keys.c.name, keys.c.enrolled_at_ms)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [Enrolled(r.name, r.role, r.keyid, r.enrolled_at_ms, r.revoked_at_ms, r.successor or "", r.ends) for r in rows]


def withdraw(connection: sa.Connection, name: str, now_ms: int) -> int:
    """Take back the unused invitations of a name; how many."""
    table = schema.invitations
    unused = sa.update(table).where(table.c.name == name, table.c.used_by.is_(None), table.c.withdrawn_at_ms.is_(None))
    return connection.execute(unused, {"withdrawn_at_ms": now_ms}).rowcount


def _in_force(connection: sa.Connection, name: str) -> bool:
    table = schema.keys
    query = sa.select(table.c.keyid).where(table.c.name == name, table.c.revoked_at_ms.is_(None))
    return connection.execute(query).first() is not None


def _add_key(
    connection: sa.Connection, name: str, public: PublicKey, role: Role, now_ms: int, succeeds: str | None = None
) -> None:
    row = {"keyid": public.keyid, "public": public.raw, "name": name, "role": role, "enrolled_at_ms": now_ms}
    try:
        connection.execute(sa.insert(schema.keys), row | {"succeeds": succeeds})
    except sa.exc.IntegrityError as error:
        raise ConflictError(f"{name!r} or key {public.keyid} is enrolled already") from error


def _note(connection: sa.Connection, keyid: str, certified: Certified | None, now_ms: int) -> None:
    if certified is not None:
        row = {"serial": certified.serial, "keyid": keyid, "issued_at_ms": now_ms, "expires_at_ms": certified.expires_at_ms}
        connection.execute(sa.insert(schema.certificates), row)


def _member(row: sa.Row[tuple[object, ...]]) -> Member:
    return Member(row.name, PublicKey(row.public), row.role, revoked=row.revoked_at_ms is not None)
