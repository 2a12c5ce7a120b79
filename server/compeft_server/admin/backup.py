"""Backup of a whole aggregator: its ledger, its keys and every chunk the ledger names, in one tar file. `restore.py` reads it.

The ledger is copied first, at one instant, while the aggregator goes on; then the chunks that this copy names. A chunk is durable
before it is named and never changes, so whatever is published meanwhile, the copy finds all of its chunks as they were.

The members are plain files in one order: `backup.json`, `ledger.sqlite`, those of PRIVATE_FILES that there are, `chunks/<SHA-256>`. The
first holds the digests of the others but the chunks; a chunk is named by its own.
"""

import hashlib
import json
import os
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from compeft_core.errors import InputError
from compeft_proto.errors import UnknownExpertError
from compeft_server.admin.garbage_collection import named
from compeft_server.chunks.store import ChunkStore
from compeft_server.data_directory import LEDGER_FILE, open_store, read_storage
from compeft_server.identity.aggregator_keys import HANDOVERS_FILE, KEY_FILE, NEXT_FILE, own_key
from compeft_server.identity.authority_files import AUTHORITY, FOLDER, OLD, SERVER
from compeft_server.ledger.ledger import Ledger

FORMAT = 1
HEAD_FILE, CHUNK_FOLDER = "backup.json", "chunks/"
PRIVATE_FILES = (KEY_FILE, NEXT_FILE, HANDOVERS_FILE, *(f"{FOLDER}/{name}" for name in (AUTHORITY, OLD, SERVER)))
"""What else makes an aggregator itself, by path in the data directory: its signing keys, and its own authority if it has one."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first member of a backup: lists the others. `files` are digests by name. Digests are SHA-256 in hexadecimal."""

    format: int
    program: str
    created_at_ms: int
    ledger_bytes: int
    ledger_sha256: str
    files: dict[str, str]
    chunks: int


def back_up(data: Path, target: Path, now_ms: int) -> Head:
    """Write a backup of a data directory to a new file, readable by its owner only: it holds the aggregator's private keys.

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
        private = {name: (data / name).read_bytes() for name in PRIVATE_FILES if (data / name).exists()}
        head = _head(copy, private, len(wanted), now_ms)
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
                _write(tar, head, copy, private)
                _write_chunks(tar, open_store(data), wanted)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    return head


def _copy_ledger(source: Path, copy: Path) -> list[bytes]:
    """Copy the ledger at one instant; returns the chunks that it names, ordered by digest."""
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


def _head(ledger: Path, private: Mapping[str, bytes], chunks: int, now_ms: int) -> Head:
    with ledger.open("rb") as file:
        ledger_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    files = {name: hashlib.sha256(content).hexdigest() for name, content in private.items()}
    return Head(FORMAT, version("compeft"), now_ms, ledger.stat().st_size, ledger_sha256, files, chunks)


def _write(tar: tarfile.TarFile, head: Head, ledger: Path, private: Mapping[str, bytes]) -> None:
    text = json.dumps(asdict(head), indent=1).encode()
    _add(tar, HEAD_FILE, BytesIO(text), len(text))
    with ledger.open("rb") as source:
        _add(tar, LEDGER_FILE, source, head.ledger_bytes)
    for name, content in private.items():
        _add(tar, name, BytesIO(content), len(content))


def _write_chunks(tar: tarfile.TarFile, store: ChunkStore, wanted: Iterable[bytes]) -> None:
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
