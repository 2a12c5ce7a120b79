"""Bytes that edge clients moved, summed in SQL. Conductors and readers are left out, as in the report."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from compeft_server.domain.traffic import Traffic, add
from compeft_server.ledger.lookups.reader import LedgerReader
from compeft_server.ledger.schema import keys, transfers

CURVE_POINTS = 120
"""Most versions of which a long expert log's curve is made."""

SUMS = tuple(
    sa.func.coalesce(sa.func.sum(transfers.c[name]), 0).label(name) for name in (field.name for field in fields(Traffic))
)
OF_EDGES = transfers.join(keys, sa.and_(keys.c.keyid == transfers.c.keyid, keys.c.role == "edge"))


NOTHING = Traffic()


@dataclass(frozen=True, slots=True)
class Moved:
    """What edge clients moved: uploads and syncs."""

    up: Traffic = NOTHING
    down: Traffic = NOTHING
    calls: int = 0

    @property
    def both(self) -> Traffic:
        """Both directions."""
        return add((self.up, self.down))


class MovedBytes(LedgerReader):
    """What edge clients moved, by expert, version, member and time."""

    def moved(self, since_ms: int = 0) -> dict[str, Moved]:
        """What edge clients moved for each expert from a time on; the key "" is of calls that never named one."""
        return self._moved(transfers.c.expert, (transfers.c.at_ms >= since_ms,))

    def moved_by_version(self, expert: str, numbers: Collection[int]) -> dict[int, Moved]:
        """The same for some versions of one expert."""
        return self._moved(transfers.c.version, (transfers.c.expert == expert, transfers.c.version.in_(numbers)))

    def moved_between(self, expert: str, first: int, last: int, since_ms: int = 0) -> Moved:
        """What edge clients moved for the versions `first` to `last` of one expert."""
        c = transfers.c
        where = (c.expert == expert, c.version.between(first, last), c.at_ms >= since_ms)
        return self._moved(c.expert, where).get(expert, Moved())

    def moved_by_member(self, keyid: str) -> dict[str, Moved]:
        """By expert: what one edge client moved."""
        return self._moved(transfers.c.expert, (transfers.c.keyid == keyid,))

    def span(self, names: Collection[str]) -> tuple[int, int] | None:
        """When the first and the last transfer of edge clients for these experts began, in ms; None if there was none."""
        c = transfers.c
        query = sa.select(sa.func.min(c.at_ms).label("first"), sa.func.max(c.at_ms).label("last"))
        row = self._select(query.select_from(OF_EDGES).where(c.expert.in_(names)))[0]
        return None if row.first is None else (row.first, row.last)

    def moved_over_time(self, names: Collection[str], first_ms: int, length_ms: int) -> dict[int, Moved]:
        """What edge clients moved for these experts from `first_ms` on, by the number of the stretch of `length_ms` in which it began."""
        c = transfers.c
        return self._moved((c.at_ms - first_ms) // length_ms, (c.expert.in_(names), c.at_ms >= first_ms))

    def wire_curve(self, expert: str, head: int) -> list[tuple[int, int]]:
        """(version, wire bytes up to it) at evenly spaced versions and the newest one, at most CURVE_POINTS + 1 of them."""
        step = -(-(head + 1) // CURVE_POINTS)
        bucket = (head - transfers.c.version) // step
        wire = sa.func.sum(transfers.c.wire_received_bytes + transfers.c.wire_sent_bytes)
        where = (transfers.c.expert == expert, transfers.c.version <= head)
        query = sa.select(bucket.label("bucket"), wire.label("wire")).select_from(OF_EDGES).where(*where).group_by("bucket")
        points, sent = [], 0
        for row in sorted(self._select(query), key=lambda r: -r.bucket):
            sent += int(row.wire)
            points.append((head - row.bucket * step, sent))
        return points

    def newest_delivered(self, keyid: str) -> dict[str, int]:
        """By expert: the newest version that was delivered to a key."""
        c = transfers.c
        query = sa.select(c.expert, sa.func.max(c.version).label("version")).where(
            c.keyid == keyid, c.direction == "down", c.expert != ""
        )
        return {r.expert: r.version for r in self._select(query.group_by(c.expert))}

    def transfer_rows(self, expert: str | None = None, since_ms: int = 0) -> Iterator[Mapping[str, Any]]:
        """Every transfer of an expert, or of all, in the order of recording, with the `client` (name) and `role` of its key, if known."""
        columns = [c for c in transfers.c if c.name != "id"]
        joined = transfers.outerjoin(keys, keys.c.keyid == transfers.c.keyid)
        where = [transfers.c.at_ms >= since_ms] + ([transfers.c.expert == expert] if expert is not None else [])
        query = sa.select(*columns, keys.c.name.label("client"), keys.c.role).select_from(joined).where(*where)
        for row in self._select(query.order_by(transfers.c.id)):
            yield dict(row._mapping)

    def _moved(self, by: sa.ColumnElement[Any], where: Iterable[sa.ColumnElement[bool]]) -> dict[Any, Moved]:
        columns = (by.label("place"), transfers.c.direction, sa.func.count().label("calls"), *SUMS)
        query = sa.select(*columns).select_from(OF_EDGES).where(*where).group_by(by, transfers.c.direction)
        parts: dict[Any, dict[str, tuple[Traffic, int]]] = {}
        for r in self._select(query):
            parts.setdefault(r.place, {})[r.direction] = (_traffic(r), r.calls)
        none = (NOTHING, 0)
        pairs = {place: (found.get("up", none), found.get("down", none)) for place, found in parts.items()}
        return {place: Moved(up[0], down[0], up[1] + down[1]) for place, (up, down) in pairs.items()}


def _traffic(row: sa.Row[Any]) -> Traffic:
    return Traffic(
        dense_fp32_bytes=int(row.dense_fp32_bytes),
        payload_bytes=int(row.payload_bytes),
        wire_received_bytes=int(row.wire_received_bytes),
        wire_sent_bytes=int(row.wire_sent_bytes),
        seconds=float(row.seconds),
        relayed_bytes=int(row.relayed_bytes),
        flow_bytes=int(row.flow_bytes),
        flow_seconds=float(row.flow_seconds),
    )
