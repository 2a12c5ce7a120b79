"""Backup of a whole aggregator: its ledger, its key and every chunk the ledger names, in one tar file. `restore.py` reads it.

The ledger is copied first, at one instant, while the aggregator goes on; then the chunks that this copy names. A chunk is durable
before it is named and never changes, so whatever is published meanwhile, the copy finds all of its chunks as they were.

The members are plain files in one order: `backup.json`, `ledger.sqlite`, `aggregator.key`, `chunks/<SHA-256>`. The first names the
digests of the second and third; a chunk is named by its own.
"""

import hashlib
import json
import os
import sqlite3
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from compeft_core.errors import InputError
from compeft_proto.errors import UnknownExpertError
from compeft_server.garbage import named
from compeft_server.ledger import Ledger
from compeft_server.serving import KEY_FILE, own_key
from compeft_server.storage import LEDGER_FILE, open_store, read_storage

FORMAT = 1
HEAD_FILE, CHUNK_FOLDER = "backup.json", "chunks/"


@dataclass(frozen=True, slots=True)
class Head:
    """The first member: what the others are. Digests are SHA-256 in hexadecimal."""

    format: int
    program: str
    created_at_ms: int
    ledger_bytes: int
    ledger_sha256: str
    key_sha256: str
    chunks: int


def back_up(data: Path, target: Path, now_ms: int) -> Head:
    """Write a backup of a data directory to a new file, readable by its owner only: it holds the aggregator's private key.

    Errors: InputError if the ledger is in PostgreSQL, there is nothing, or the file exists; UnknownExpertError, ChunkMismatchError if a
    chunk is gone or damaged.
    """
    if read_storage(data).database is not None:
        raise InputError("the ledger is in PostgreSQL: run pg_dump, then copy the chunks (docs/storage.md, Backup)")
    if not (data / LEDGER_FILE).exists():
        raise InputError(f"{data} holds no {LEDGER_FILE}: is it an aggregator's data directory?")
    if target.exists():
        raise InputError(f"{target} exists already: choose another file")
    own_key(data)
    with tempfile.TemporaryDirectory(prefix=".compeft-backup-", dir=target.absolute().parent) as folder:
        copy, beside = Path(folder) / LEDGER_FILE, Path(folder) / "backup.tar"
        wanted = _copy_ledger(data / LEDGER_FILE, copy)
        head = _head(copy, data / KEY_FILE, len(wanted), now_ms)
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            _write(file, head, copy, data, wanted)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    return head


def _copy_ledger(source: Path, copy: Path) -> list[bytes]:
    """The ledger as it is at one instant; the chunks it names, in the order of their digests."""
    reading, writing = sqlite3.connect(source), sqlite3.connect(copy)
    try:
        reading.backup(writing)
    finally:
        reading.close()
        writing.close()
    ledger = Ledger(copy)
    try:
        return sorted(named(ledger))
    finally:
        ledger.close()


def _head(ledger: Path, key: Path, chunks: int, now_ms: int) -> Head:
    with ledger.open("rb") as file:
        ledger_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    key_sha256 = hashlib.sha256(key.read_bytes()).hexdigest()
    return Head(FORMAT, version("compeft"), now_ms, ledger.stat().st_size, ledger_sha256, key_sha256, chunks)


def _write(file: BinaryIO, head: Head, ledger: Path, data: Path, wanted: list[bytes]) -> None:
    store, text = open_store(data), json.dumps(asdict(head), indent=1).encode()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        _add(tar, HEAD_FILE, BytesIO(text), len(text))
        with ledger.open("rb") as source:
            _add(tar, LEDGER_FILE, source, head.ledger_bytes)
        key = (data / KEY_FILE).read_bytes()
        _add(tar, KEY_FILE, BytesIO(key), len(key))
        for sha256 in wanted:
            try:
                chunk = store.read(sha256)
            except UnknownExpertError as error:
                raise UnknownExpertError(f"{error}: if `compeft gc` ran meanwhile, back up again; else it is lost") from error
            _add(tar, CHUNK_FOLDER + sha256.hex(), BytesIO(chunk), len(chunk))


def _add(tar: tarfile.TarFile, name: str, source: BinaryIO, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    tar.addfile(member, source)
