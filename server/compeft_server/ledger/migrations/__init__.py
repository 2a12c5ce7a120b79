"""Bringing a database to the schema that this code knows: one Alembic revision a change, run when the ledger is opened.

Invariant: after `upgrade` the database has exactly the tables of `schema.metadata`. An empty database gets them at once, as all revisions
together would make them (tests/server/ledger/test_migrations.py compares both).
All of it is one transaction under one lock, so processes that start together take turns and a crash leaves the old schema whole.
Alembic is imported only where there is something to upgrade: nobody waits for it with a new database, or one that is up to date.
"""

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from compeft_core.errors import CompeftError
from compeft_server.ledger import schema

REVISIONS = tuple(sorted(path.stem[1:] for path in (Path(__file__).parent / "versions").glob("r*.py")))
"""Every revision, oldest first: that of `versions/r0001_first_release.py` is `0001_first_release`."""
ADVISORY_LOCK = 0x636F6D7065667401
"""PostgreSQL's key of the lock that upgrades take turns by: "compeft" and a 1."""

_noted = sa.Table(
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own table, as Alembic makes it."""


class NewerDatabaseError(CompeftError):
    """The database was upgraded by a newer version of this program."""

    code = "database_newer"


def upgrade(engine: Engine) -> None:
    """Run what the database has not seen yet; nothing where it is up to date. Errors: NewerDatabaseError."""
    with engine.connect() as connection:
        up_to_date = _revision(connection) == REVISIONS[-1]
    if not up_to_date:
        with engine.connect() as connection:
            _lock(connection)
            found = _revision(connection)  # again: another process may have been here between the look above and the lock
            if found is None and not sa.inspect(connection).get_table_names():
                create(connection)
            else:
                migrate(connection, found)
            connection.commit()
        engine.dispose()  # SQLite's switch for references is of the connection: the one above is not used again


def _revision(connection: Connection) -> str | None:
    """The newest revision that the database has seen; None if it is empty. What 0.1.0 made notes none, and is the first."""
    tables = sa.inspect(connection).get_table_names()
    if "alembic_version" not in tables:
        return REVISIONS[0] if "keys" in tables else None
    found = str(connection.execute(sa.select(_noted.c.version_num)).scalar_one())
    if found not in REVISIONS:
        raise NewerDatabaseError(
            f"database is at revision {found!r}, this program knows up to {REVISIONS[-1]!r}: upgrade compeft"
        )
    return found


def create(connection: Connection) -> None:
    """Make the tables of the newest revision in an empty database, and note that revision."""
    schema.metadata.create_all(connection)
    _noted.create(connection)
    connection.execute(_noted.insert().values(version_num=REVISIONS[-1]))


def migrate(connection: Connection, found: str | None) -> None:
    """Run every revision after `found` (None: all of them). Errors: CompeftError if rows would refer to nothing."""
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    if found is not None:
        command.stamp(config, found)
    command.upgrade(config, REVISIONS[-1])
    if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        raise CompeftError(
            "upgrading would leave rows that refer to nothing: the database is as it was, restore it from a backup"
        )


def _lock(connection: Connection) -> None:
    """Keep every other upgrade out until the transaction ends. SQLite checks references at its end: tables are made anew there."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        return
    connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
    connection.exec_driver_sql("BEGIN IMMEDIATE")
