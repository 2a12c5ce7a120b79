"""Where an aggregator keeps what it knows: which database and which store belong to a data directory. It opens them, no more.

By default both lie in the directory: `ledger.sqlite`, and `chunks/` with `partial/`. `storage.toml`, written by the first
`compeft serve` that names another place, says otherwise; every command that takes --data reads it, so all of them mean the same data.
"""

import json
import os
import stat
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from compeft_core.errors import FormatError, InputError
from compeft_proto.errors import ForbiddenError
from compeft_server.chunks.directory_store import DirectoryStore
from compeft_server.chunks.store import ChunkStore
from compeft_server.ledger.database import parse_url
from compeft_server.ledger.ledger import Ledger
from compeft_server.private_files import write_durably

LEDGER_FILE, STORAGE_FILE = "ledger.sqlite", "storage.toml"


@dataclass(frozen=True, slots=True)
class Storage:
    """URLs of the database and of the store; None is the default, in the data directory."""

    database: str | None = None
    store: str | None = None


def read_storage(data: Path) -> Storage:
    """What the data directory says. Errors: FormatError."""
    path = data / STORAGE_FILE
    if not path.exists():
        return Storage()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not TOML: {error}") from error
    known = asdict(Storage())
    if wrong := [key for key, value in values.items() if key not in known or not isinstance(value, str)]:
        raise FormatError(f"{path} has {wrong[0][:40]!a}, expected {' and '.join(known)}, each a string")
    return Storage(**values)


def choose_storage(data: Path, wanted: Storage) -> Storage:
    """Settle where a data directory keeps its data, once. What is not wanted stays as it is; the same again is nothing.

    Errors: InputError if it is settled otherwise, or if the directory holds data of its own already.
    """
    found = read_storage(data)
    chosen = Storage(wanted.database or found.database, wanted.store or found.store)
    if chosen == found:
        return found
    for what, now, new, own in _changes(data, found, chosen):
        if now is not None:
            raise InputError(f"{data / STORAGE_FILE} names another {what}: move the data, then change it there")
        if own.exists():
            raise InputError(f"{own} holds data already: move it to {_scheme(new)} first, or take another --data")
    _check(chosen, data / "partial")
    _write(data / STORAGE_FILE, chosen)
    return chosen


def open_ledger(data: Path) -> Ledger:
    """The ledger of a data directory, which is made if absent. Errors: as `database.open_engine`."""
    data.mkdir(parents=True, exist_ok=True)
    database = read_storage(data).database
    if database is None:
        _keep_private(data / LEDGER_FILE)
    return Ledger(database or data / LEDGER_FILE)


def check_data(data: Path) -> None:
    """Whether an aggregator may serve from `data`: nobody else can write there, and its ledger has not been lost.

    Errors: ForbiddenError for a folder that others may write to; InputError where keys or chunks are there but their ledger is not.
    """
    if not data.exists():
        return
    found = data.stat()
    others = bool(found.st_mode & stat.S_IWOTH)
    strangers = bool(found.st_mode & stat.S_IWGRP) and found.st_gid not in {os.getegid(), *os.getgroups()}
    if others or strangers:
        raise ForbiddenError(
            f"data directory {data} has mode {stat.S_IMODE(found.st_mode):04o}, others could replace its keys: chmod 700 {data}"
        )
    left = [name for name in ("aggregator.key", "chunks") if (data / name).exists()]
    if left and read_storage(data).database is None and not (data / LEDGER_FILE).exists():
        raise InputError(
            f"{data} has {' and '.join(left)} but no {LEDGER_FILE}: it was deleted or moved; put it back, or restore a backup"
        )


def _keep_private(path: Path) -> None:
    """Make a file that only its owner may read or write, or take it from others. SQLite's files beside it get the same mode."""
    with suppress(OSError):  # of another owner, or on a disk that may only be read: opening it says more
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def existing(data: Path) -> Path:
    """`data`, if a ledger belongs to it. Errors: InputError: a mistyped directory is not made by looking at it."""
    if not any((data / name).exists() for name in (LEDGER_FILE, STORAGE_FILE)):
        raise InputError(f"{data} is not a data directory, it has no {LEDGER_FILE}: `compeft serve --data {data}` makes one")
    return data


def open_store(data: Path) -> ChunkStore:
    """The store of a data directory, which is made if absent. Errors: InputError."""
    url = read_storage(data).store
    return DirectoryStore(data) if url is None else _open_bucket(url, data / "partial")


def _changes(data: Path, found: Storage, chosen: Storage) -> Iterator[tuple[str, str | None, str, Path]]:
    """What would change: its name, the value now, the value then, and where the default keeps its data."""
    if chosen.database is not None and chosen.database != found.database:
        yield "database", found.database, chosen.database, data / LEDGER_FILE
    if chosen.store is not None and chosen.store != found.store:
        yield "store", found.store, chosen.store, data / "chunks"


def _check(chosen: Storage, staging: Path) -> None:
    if chosen.database is not None:
        parse_url(chosen.database)
    if chosen.store is not None:
        _open_bucket(chosen.store, staging)


def _open_bucket(url: str, staging: Path) -> ChunkStore:
    """The extra with obstore is imported only where there is a bucket."""
    try:
        from compeft_server.chunks.object_store import ObjectStore, open_bucket
    except ModuleNotFoundError as error:
        raise InputError("a bucket needs obstore: pip install 'compeft[object-store]'") from error
    return ObjectStore(open_bucket(url), staging)


def _scheme(url: str) -> str:
    return url.partition(":")[0]


def _write(path: Path, storage: Storage) -> None:
    """A TOML string is written as a JSON one. The file may hold a password: only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in asdict(storage).items() if value is not None]
    write_durably(path, "".join(lines).encode(), mode=0o600)
