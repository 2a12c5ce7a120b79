"""Restoring an aggregator from what `backup.py` wrote: all of it or nothing, and only what was written.

An archive is hostile until it has been read to its end: no member but those expected, in their order; no kind but plain files; no name
that is used as a path; never more bytes than announced; each held against its digest. What was read becomes the data directory in
one rename, after the ledger has opened, its audit log holds, and every chunk it names is there.
"""

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from compeft_core.errors import FormatError, InputError, LimitError
from compeft_proto.chunk_refs import CHUNK_BYTES
from compeft_proto.errors import ChunkMismatchError
from compeft_server.admin.audit_check import verify_log
from compeft_server.admin.backup import CHUNK_FOLDER, FORMAT, HEAD_FILE, PRIVATE_FILES, Head
from compeft_server.admin.garbage_collection import named
from compeft_server.chunks.directory_store import DirectoryStore
from compeft_server.data_directory import LEDGER_FILE
from compeft_server.identity.aggregator_keys import KEY_FILE
from compeft_server.ledger.ledger import Ledger
from compeft_server.private_files import write_durably

MAX_HEAD_BYTES, MAX_FILE_BYTES = 64 * 2**10, 2**20
BLOCK = tarfile.BLOCKSIZE
COPY_BYTES = 2**20


def restore(archive: Path, data: Path) -> Head:
    """Make a data directory from a backup. Ledger and chunks lie in the directory, wherever the chunks were before.

    Errors: InputError if `data` holds anything; FormatError, LimitError, ChunkMismatchError, AuditError if the archive is torn or is not
    what was written; NewerDatabaseError.
    """
    if data.exists() and any(data.iterdir()):
        raise InputError(f"{data} is not empty: restore into a new directory")
    beside = data.absolute().with_name(data.absolute().name + ".restoring")
    if beside.exists():
        raise InputError(f"{beside} is there: another restore is running, or was cut off; remove it")
    beside.mkdir(parents=True, mode=0o700)
    try:
        with _opened(archive) as file:
            head = _read_into(beside, file, archive)
        _check(beside, archive)
        beside.replace(data)
    except BaseException:
        shutil.rmtree(beside)
        raise
    return head


def _opened(archive: Path) -> BinaryIO:
    try:
        return archive.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {archive}: {error.strerror}") from error


def _read_into(folder: Path, file: BinaryIO, archive: Path) -> Head:
    members = _members(file, archive)
    head = _read_head(_small(members, HEAD_FILE, MAX_HEAD_BYTES, archive), archive)
    _copy(members, folder / LEDGER_FILE, head, archive)
    for name in (name for name in PRIVATE_FILES if name in head.files):
        content = _small(members, name, MAX_FILE_BYTES, archive)
        if hashlib.sha256(content).hexdigest() != head.files[name]:
            raise FormatError(f"{archive}: {name} is not the one that was backed up")
        (folder / name).parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(folder / name, content, mode=0o600)
    _copy_chunks(members, DirectoryStore(folder), head, archive)
    return head


@dataclass(frozen=True, slots=True)
class _Member:
    """A member whose bytes are about to be read: all of them, before the next one."""

    name: str
    size: int
    file: BinaryIO


def _members(file: BinaryIO, archive: Path) -> Iterator[_Member]:
    """Plain files only: a member of any other kind, such as a link or an extended header, is refused before it is looked at."""
    while True:
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            return
        try:
            found = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.TarError, UnicodeDecodeError) as error:
            raise FormatError(f"{archive} is torn, or is not a backup: {error} at byte {file.tell() - len(header)}") from error
        if found.type != tarfile.REGTYPE or found.size < 0:
            raise FormatError(f"{archive}: {found.name[:80]!a} is not a plain file")
        here = file.tell()
        yield _Member(found.name, found.size, file)
        file.seek(here + -(-found.size // BLOCK) * BLOCK)


def _next(members: Iterator[_Member], name: str, archive: Path) -> _Member:
    found = next(members, None)
    if found is None or found.name != name:
        raise FormatError(f"{archive}: {name} is expected, found is {found.name[:80] if found else 'the end'!a}")
    return found


def _small(members: Iterator[_Member], name: str, at_most: int, archive: Path) -> bytes:
    return _bytes(_next(members, name, archive), at_most, archive)


def _bytes(member: _Member, at_most: int, archive: Path) -> bytes:
    if member.size > at_most:
        raise LimitError(f"{archive}: {member.name[:80]!a} has {member.size} bytes, expected at most {at_most}")
    data = member.file.read(member.size)
    if len(data) < member.size:
        raise FormatError(f"{archive} is torn: {member.name[:80]!a} has {len(data)} of {member.size} bytes")
    return data


def _read_head(text: bytes, archive: Path) -> Head:
    try:
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise FormatError(f"{archive} has format {values['format']!a}, this program reads {FORMAT}")
        head = Head(**values)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError(f"{archive}: {HEAD_FILE} is not that of a backup") from error
    if any(type(value) is not type(getattr(_EMPTY, name)) for name, value in asdict(head).items()):
        raise FormatError(f"{archive}: {HEAD_FILE} has a value of the wrong kind")
    if not {KEY_FILE} <= set(head.files) <= set(PRIVATE_FILES):
        raise FormatError(f"{archive}: {HEAD_FILE} names other files than an aggregator has")
    return head


_EMPTY = Head(FORMAT, "", 0, 0, "", {}, 0)


def _copy(members: Iterator[_Member], target: Path, head: Head, archive: Path) -> None:
    member, digest = _next(members, LEDGER_FILE, archive), hashlib.sha256()
    if member.size != head.ledger_bytes:
        raise FormatError(f"{archive}: {LEDGER_FILE} has {member.size} bytes, backed up were {head.ledger_bytes}")
    left = member.size
    with target.open("xb") as file:
        while left and (data := member.file.read(min(left, COPY_BYTES))):
            digest.update(data)
            left -= file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != head.ledger_sha256:
        raise FormatError(f"{archive}: {LEDGER_FILE} is torn, or is not the one that was backed up")


def _copy_chunks(members: Iterator[_Member], store: DirectoryStore, head: Head, archive: Path) -> None:
    count = 0
    for member in members:
        name = member.name.removeprefix(CHUNK_FOLDER)
        if store.put(_bytes(member, CHUNK_BYTES, archive)).hex() != name or member.name == name:
            raise ChunkMismatchError(f"{archive}: {member.name[:80]!a} is not the chunk that was backed up")
        count += 1
        if count > head.chunks:
            break
    if count != head.chunks:
        raise FormatError(f"{archive} has {'more than' if count > head.chunks else f'{count} of'} {head.chunks} chunks")


def _check(folder: Path, archive: Path) -> None:
    """The ledger opens, its audit log holds, and every chunk it names is there."""
    ledger = Ledger(folder / LEDGER_FILE)
    try:
        verify_log(ledger)
        lacking = named(ledger) - {chunk.sha256 for chunk in DirectoryStore(folder).chunks()}
    finally:
        ledger.close()
    if lacking:
        raise FormatError(f"{archive} lacks {len(lacking)} chunks that its ledger names, such as {min(lacking).hex()[:16]}")
