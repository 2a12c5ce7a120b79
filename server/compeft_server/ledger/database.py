"""The database behind the ledger: how it is reached, and its schema brought up to date. No query of the ledger is here.

A database is a SQLite file (WAL, the default) or PostgreSQL by URL. `open_engine` returns one that has every table of `schema.py`;
`take_turn` is the lock under which decisions are made one at a time, whatever number of processes share the database.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, ExceptionContext, make_url

from compeft_core.errors import InputError, LimitError
from compeft_proto.errors import StorageFullError, UnreachableError
from compeft_server.ledger import migrations

SQLITE_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
SQLITE_WAIT_S = 30
"""Seconds that a writer waits for another one."""
POSTGRESQL = "postgresql+psycopg"
POSTGRESQL_TURN = 0x636F6D7065667402
"""PostgreSQL's key of the lock of `take_turn`: "compeft" and a 2."""
LedgerError = sa.exc.SQLAlchemyError
"""What a method of the ledger raises where the database does not answer; a refused value or a full disk has a type of its own."""
CONNECTIONS, SPARE_CONNECTIONS = 8, 24
CONNECT_WAIT_S = 10
LEAST_FREE = 2**16
"""Bytes below which a disk is full for SQLite: the file of shared memory beside a database takes 32 KiB."""
FULL_MS = 10_000
"""When a client is asked to come back to a full disk."""


class LedgerGoneError(UnreachableError):
    """The ledger file was deleted or replaced after it was opened."""

    code = "ledger_gone"


def open_engine(database: str | Path) -> Engine:
    """An engine on a SQLite file (made if absent) or on the PostgreSQL of a URL, with the newest schema.

    Errors: InputError for another kind of URL, or without psycopg; UnreachableError; NewerDatabaseError.
    """
    engine = _sqlite(database) if isinstance(database, Path) else _postgresql(parse_url(database))
    sa.event.listen(engine, "handle_error", _translate)
    try:
        migrations.upgrade(engine)
    except sa.exc.OperationalError as error:
        engine.dispose()
        if isinstance(database, Path):
            raise
        shown = engine.url.render_as_string(hide_password=True)
        raise UnreachableError(f"database {shown} cannot be reached: {_first_line(error)}") from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def parse_url(database: str) -> URL:
    """The URL of a PostgreSQL database. Errors: InputError, which does not repeat a password."""
    try:
        url = make_url(database)
    except sa.exc.ArgumentError as error:
        raise InputError(f"that is not a database URL, one looks like {POSTGRESQL}://user@host/name") from error
    if url.drivername != POSTGRESQL:
        raise InputError(f"database URL begins with {url.drivername[:40]!a}, it must be {POSTGRESQL}://user@host/name")
    return url


def read(engine: Engine, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
    """The rows of a query, in a transaction of its own."""
    with engine.connect() as connection:
        return connection.execute(query).all()


def take_turn(connection: Connection) -> None:
    """Keep every other transaction that takes its turn out until this one ends. Must be the first thing that a transaction does.

    SQLite has one writer at a time anyway: there the first write of a transaction is what takes the turn.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(POSTGRESQL_TURN)))


def _sqlite(path: Path) -> Engine:
    """An engine on a file. The URL is built from its parts: as text, `?` and `%` of a folder's name would mean something else."""
    try:
        os.fsdecode(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"invalid data directory {os.fsencode(path)!r}: expected a name in UTF-8, SQLite takes no other"
        ) from error
    engine = sa.create_engine(URL.create("sqlite", database=str(path.absolute())), connect_args={"timeout": SQLITE_WAIT_S})
    sa.event.listen(engine, "connect", _configure_sqlite)
    same = _SameFile(path.absolute())
    sa.event.listen(engine, "connect", same.note)
    sa.event.listen(engine, "do_connect", same.check)
    sa.event.listen(engine, "checkout", same.check)
    return engine


class _SameFile:
    """Lets nothing be read or written once the file is gone, or another: SQLite would go on in the deleted one, or make an empty one."""

    def __init__(self, path: Path) -> None:
        self._path, self._known = path, (0, 0)

    def note(self, *_: object) -> None:
        """The first connection has made the file, or found it."""
        if self._known == (0, 0):
            self._known = self._found()

    def check(self, *_: object) -> None:
        """Errors: LedgerGoneError."""
        if self._known not in ((0, 0), self._found()):
            raise LedgerGoneError(f"{self._path.name} was deleted or exchanged while it was in use: put it back, and start again")

    def _found(self) -> tuple[int, int]:
        """Device and number of the file; -1 if it is gone."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return -1, -1
        return found.st_dev, found.st_ino


def _configure_sqlite(connection: object, _record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]  # a DB-API connection
    for pragma in SQLITE_PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _postgresql(url: URL) -> Engine:
    """`pool_pre_ping` replaces connections that a restart of the database has broken."""
    try:
        return sa.create_engine(
            url,
            pool_pre_ping=True,
            pool_size=CONNECTIONS,
            max_overflow=SPARE_CONNECTIONS,
            connect_args={"connect_timeout": CONNECT_WAIT_S, "application_name": "compeft"},
        )
    except ModuleNotFoundError as error:
        raise InputError("PostgreSQL needs psycopg: pip install 'compeft[postgres]'") from error


def _translate(failed: ExceptionContext) -> None:
    """Raise this product's own error for the database's. Errors: LimitError, where PostgreSQL bounds what SQLite takes (lengths, integers,
    no NUL in text); StorageFullError; InputError where a SQLite file may not be written.
    """
    error = failed.sqlalchemy_exception
    if isinstance(error, sa.exc.DataError):
        _too_large(error)
    if isinstance(error, sa.exc.OperationalError) and "full" in str(error.orig):
        raise StorageFullError(f"aggregator's disk is full ({error.orig}): its operator must make room", FULL_MS) from error
    if isinstance(error, sa.exc.OperationalError) and failed.dialect.name == "sqlite" and failed.engine is not None:
        _of_file(error, Path(failed.engine.url.database or ""))


def _of_file(error: sa.exc.OperationalError, path: Path) -> None:
    """SQLite says of a full disk that it is full, or that it cannot open or write one of the files beside the database."""
    why = _first_line(error)
    unusable = any(sign in why for sign in ("readonly", "unable to open", "disk I/O error"))
    if unusable and path.parent.exists() and shutil.disk_usage(path.parent).free < LEAST_FREE:
        raise StorageFullError(
            f"aggregator's disk is full, {path.name} cannot grow: its operator must make room", FULL_MS
        ) from error
    if unusable:
        raise InputError(f"cannot open {path} for writing: copy its folder to a disk and a user that may write to it") from error


def _too_large(error: sa.exc.DataError) -> NoReturn:
    raise LimitError(f"the ledger cannot hold this: {_first_line(error)}") from error


def _first_line(error: sa.exc.DBAPIError) -> str:
    return (str(error.orig).strip().splitlines() or ["no reason given"])[0]
