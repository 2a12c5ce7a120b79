"""Databases of every age open with the schema that the code knows, and keep what is in them."""

import sqlite3
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from compeft_server.ledger import migrations, schema
from compeft_server.ledger.audit import check
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.migrations import REVISIONS, NewerDatabaseError

DUMP = Path(__file__).parent / "ledger-0.1.0.sql"


def open_one(database: str | Path) -> list[str]:
    """Open a ledger, in a process of its own."""
    ledger = Ledger(database)
    try:
        return ledger.experts()
    finally:
        ledger.close()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database that 0.1.0 made and used: one version merged, a second round open."""
    path = tmp_path / "ledger.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(DUMP.read_text())
    connection.close()
    return path


def differences(ledger: Ledger) -> list[object]:
    """What Alembic would change to get from a database to the metadata."""
    with ledger._engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), schema.metadata))


def shape(engine: sa.Engine) -> dict[str, object]:
    """All that the database says of each table: columns with types and defaults, keys, indexes, constraints, and its number of rows."""
    look = sa.inspect(engine)
    found: dict[str, object] = {}
    with engine.connect() as connection:
        for table in sorted(look.get_table_names()):
            columns = sorted((c["name"], str(c["type"]), c["nullable"], str(c["default"])) for c in look.get_columns(table))
            where = f"{engine.dialect.name}_where"
            indexes = sorted(
                (str(i["name"]), str(i["column_names"]), bool(i["unique"]), str(i.get("dialect_options", {}).get(where)))
                for i in look.get_indexes(table)
            )
            keys = sorted(
                (k["constrained_columns"], k["referred_table"], k["referred_columns"]) for k in look.get_foreign_keys(table)
            )
            unique = sorted(sorted(u["column_names"]) for u in look.get_unique_constraints(table))
            checks = sorted(c["sqltext"] for c in look.get_check_constraints(table))
            rows = connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one()
            found[table] = columns, indexes, look.get_pk_constraint(table)["constrained_columns"], keys, unique, checks, rows
    return found


def emptied(engine: sa.Engine) -> None:
    """Drop all tables."""
    tables = sa.MetaData()
    tables.reflect(engine)
    tables.drop_all(engine)


def test_a_new_database_is_what_all_revisions_together_make(ledger: Ledger) -> None:
    assert differences(ledger) == []
    created = shape(ledger._engine)
    emptied(ledger._engine)
    with ledger._engine.begin() as connection:
        migrations.migrate(connection, None)
    assert differences(ledger) == []
    assert shape(ledger._engine) == created


def test_a_database_of_the_first_release_opens_with_its_data_and_the_newest_schema(old: Path) -> None:
    ledger = Ledger(old)
    assert differences(ledger) == []
    assert [m.name for m in ledger.members()] == ["berlin-1", "conductor"]
    assert [v.version for v in ledger.versions("sentiment", -1, 9)] == [0, 1]
    assert [len(ledger.submissions("sentiment", r.run, r.round)) for r in ledger.rounds("sentiment")] == [1, 1]
    assert len(ledger.quality("sentiment")) == len(ledger.refusals("sentiment")) == 1
    entries = ledger.audit_entries()
    assert [e.event.action for e in entries[10:]] == ["allow"] * 5 + ["record"] * 2
    check(entries)
    assert ledger.check_rows(entries)["transfers"] == len(ledger.transfers("sentiment"))
    ledger.close()


def test_a_newer_database_is_refused_and_left_alone(database: str | Path, ledger: Ledger) -> None:
    with ledger._engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999_from_the_future'"))
    with pytest.raises(NewerDatabaseError, match=r"'9999_from_the_future', this program knows up to .*: upgrade compeft"):
        Ledger(database)
    with ledger._engine.connect() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().all() == ["9999_from_the_future"]


def test_processes_that_start_together_do_not_clash(database: str | Path) -> None:
    context = get_context("forkserver")
    context.set_forkserver_preload(["compeft_server.ledger.ledger"])
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        assert list(pool.map(open_one, [database] * 8)) == [[]] * 8


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE audit (of_somebody_else TEXT)")
    connection.commit()
    with pytest.raises(sa.exc.OperationalError, match="audit already exists"):
        Ledger(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("audit",)]
    connection.close()


def test_revisions_are_one_line_in_the_order_of_their_file_names() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [REVISIONS[-1]]
    assert tuple(r.revision for r in script.walk_revisions())[::-1] == REVISIONS


def test_foreign_keys_hold_in_a_migrated_database(old: Path) -> None:
    ledger = Ledger(old)
    with pytest.raises(sa.exc.IntegrityError), ledger._engine.begin() as connection:
        connection.execute(sa.delete(schema.keys))
    ledger.close()
