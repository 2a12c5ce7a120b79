"""Experts, their versions and snapshots, as rows. Promises: those of ledger.py."""

from collections.abc import Iterator
from dataclasses import asdict

import sqlalchemy as sa

from compeft_proto.convert import layout_from_proto, layout_to_proto
from compeft_proto.errors import ConflictError
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.domain.records import Expert, Snapshot, Version
from compeft_server.ledger import audit, schema
from compeft_server.ledger.audit import Event
from compeft_server.ledger.group_commit import Tables, first


class VersionRows(Tables):
    """Experts and their logs."""

    def expert(self, name: str) -> Expert | None:
        """The expert of this name."""
        rows = self._rows(sa.select(schema.experts).where(schema.experts.c.expert == name))
        return first([_expert(row) for row in rows])

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
                audit.append(connection, published(first, publisher))
                connection.execute(sa.insert(schema.experts), row)
                connection.execute(sa.insert(schema.versions), version_row(first))
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
            self._insert(schema.versions, version_row(version), published(version, publisher))
        except sa.exc.IntegrityError as error:
            raise ConflictError(f"{version.expert} has a version {version.version} already") from error

    def snapshot(self, expert: str, version: int) -> Snapshot | None:
        """The whole state at a version, if one was made."""
        table = schema.snapshots
        rows = self._rows(sa.select(table).where(table.c.expert == expert, table.c.version == version))
        return first([Snapshot(**row._mapping) for row in rows])

    def keep_snapshot(self, made: Snapshot) -> None:
        """The whole state at a version, in place of one that was made before; it can be computed again, so it is not append-only."""
        table = schema.snapshots
        with self._engine.begin() as connection:
            connection.execute(sa.delete(table).where(table.c.expert == made.expert, table.c.version == made.version))
            connection.execute(sa.insert(table), asdict(made))

    def version_envelopes(self, expert: str) -> Iterator[bytes]:
        """The envelope of every version of an expert, oldest first."""
        table = schema.versions
        return self._column(sa.select(table.c.envelope).where(table.c.expert == expert).order_by(table.c.version))

    def snapshot_envelopes(self, expert: str) -> Iterator[bytes]:
        """The envelope of every whole state that was made of an expert's versions, in no order."""
        table = schema.snapshots
        return self._column(sa.select(table.c.envelope).where(table.c.expert == expert))


def published(version: Version, publisher: str = "") -> Event:
    """The audit event of a publication."""
    detail: dict[str, object] = {"version": version.version, "state": version.state_digest.hex()}
    detail |= {"publisher": publisher} if publisher else {}
    return audit.event(version.created_at_ms, "publish", version.expert, **detail)


def _expert(row: sa.Row[tuple[object, ...]]) -> Expert:
    layout = layout_from_proto(pb.Layout.FromString(row.layout))
    return Expert(row.expert, row.base_model_digest, row.adapter_config_digest, layout, row.kind)


def _version(row: sa.Row[tuple[object, ...]]) -> Version:
    values = dict(row._mapping)
    residual, moments = (_digests(values.pop(name)) for name in ("residual_chunks", "moment_chunks"))
    return Version(residual=residual, moments=moments, **values)


def _digests(chunks: bytes) -> tuple[bytes, ...]:
    return tuple(chunks[i : i + 32] for i in range(0, len(chunks), 32))


def version_row(version: Version) -> dict[str, object]:
    """A version as a row of its table."""
    row = asdict(version)
    row["residual_chunks"], row["moment_chunks"] = b"".join(row.pop("residual")), b"".join(row.pop("moments"))
    return row
