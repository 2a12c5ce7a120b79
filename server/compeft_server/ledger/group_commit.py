"""One thread that writes for all: what waits goes into one transaction, so one fsync pays for many. And what reads and writes through it.

Promises: a write is durable when its future has a result; one that fails leaves nothing and spoils no other; they happen in the
order in which they were asked for. A write is a function of the connection alone, since it may run twice.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import sqlalchemy as sa

from compeft_server.ledger import audit, schema
from compeft_server.ledger.audit import Event
from compeft_server.ledger.checks.recorded_rows import record_of
from compeft_server.ledger.database import read, take_turn

T = TypeVar("T")
INSERTS = {table.name: sa.insert(table) for table in schema.metadata.tables.values()}
"""Built once: building a statement takes longer than running it."""

Write = Callable[[sa.Connection], None]
Recorded = Callable[[sa.Connection], tuple[str, int]]
"""A write of one row that an audit entry of the whole transaction covers: the table's name and the row's id."""
MAX_TOGETHER = 256
"""Most writes in one transaction."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A write, and who waits for it."""

    write: Write | Recorded
    done: Future[None] = field(default_factory=Future)


class GroupCommit:
    """Writes to one database. The thread starts with the first of them; `close` ends it after the last."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def ask(self, write: Write | Recorded) -> Future[None]:
        """Write soon; the future says when it is durable, or why it is not."""
        waiting = _Waiting(write)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            self._inbox.put(waiting)
        return waiting.done

    def write(self, write: Write | Recorded) -> None:
        """Write and wait until it is durable. Errors: what `write` raises, and those of the database."""
        self.ask(write).result()

    def close(self) -> None:
        """Wait for everything that was asked for."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._inbox.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        going = True
        while going:
            together = [self._inbox.get()]
            while len(together) < MAX_TOGETHER and not self._inbox.empty():
                together.append(self._inbox.get())
            going = None not in together
            self._commit([waiting for waiting in together if waiting is not None])

    def _commit(self, together: Sequence[_Waiting]) -> None:
        """All in one transaction; if that fails, each in one of its own, so that only the culprit is told."""
        try:
            with self._engine.begin() as connection:
                take_turn(connection)
                _record(connection, [waiting.write(connection) for waiting in together])
        except Exception as error:  # noqa: BLE001  # it belongs to whoever asked
            if len(together) == 1:
                together[0].done.set_exception(error)
                return
            for waiting in together:
                self._commit([waiting])
            return
        for waiting in together:
            waiting.done.set_result(None)


def _record(connection: sa.Connection, added: Sequence[tuple[str, int] | None]) -> None:
    """One audit entry for the new rows of each table that have none of their own."""
    ids: dict[str, list[int]] = {}
    for table, number in filter(None, added):
        ids.setdefault(table, []).append(number)
    for table, numbers in ids.items():
        audit.append(connection, record_of(connection, table, numbers))


class Tables:
    """Reading and writing the tables of one subject; its subclasses are what a Ledger is made of."""

    def __init__(self, engine: sa.Engine, writes: GroupCommit) -> None:
        self._engine, self._writes = engine, writes

    def _insert(self, table: sa.Table, row: dict[str, object], happened: Event | None = None) -> None:
        self._writes.write(lambda connection: add_row(connection, table, row, happened))

    def _recorded(self, table: sa.Table, row: dict[str, object]) -> Future[None]:
        """Add a row soon, covered by the audit entry of its transaction."""

        def write(connection: sa.Connection) -> tuple[str, int]:
            added = connection.execute(INSERTS[table.name], row)
            return table.name, int((added.inserted_primary_key or (0,))[0])

        return self._writes.ask(write)

    def _column(self, query: sa.Select[bytes]) -> Iterator[bytes]:
        with self._engine.connect() as connection:
            yield from connection.execution_options(yield_per=1000).execute(query).scalars()

    def _rows(self, query: sa.Select[tuple[object, ...]]) -> Sequence[sa.Row[tuple[object, ...]]]:
        return read(self._engine, query)


def add_row(connection: sa.Connection, table: sa.Table, row: dict[str, object], happened: Event | None) -> None:
    """Insert one row, after the audit entry of what it is about if there is one."""
    if happened is not None:
        audit.append(connection, happened)
    connection.execute(INSERTS[table.name], row)


def first(rows: list[T]) -> T | None:
    """The first of these, None of none."""
    return rows[0] if rows else None
