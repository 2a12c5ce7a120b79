"""The database behind the ledger: which one, how it is reached, and its schema brought up to date. No query of the ledger is here.

A database is a SQLite file (WAL, the default) or a PostgreSQL URL. `open_engine` returns one that has every table of `schema.py`.
"""

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from compeft_server import migrations

SQLITE_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
SQLITE_WAIT_S = 30
"""Seconds that a writer waits for another one."""


def open_engine(path: Path) -> Engine:
    """An engine on the SQLite file at `path` (made if absent): WAL, foreign keys on, writers wait for each other."""
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": SQLITE_WAIT_S})
    sa.event.listen(engine, "connect", _configure_sqlite)
    migrations.upgrade(engine)
    return engine


def _configure_sqlite(connection: object, _record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]  # a DB-API connection
    for pragma in SQLITE_PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
