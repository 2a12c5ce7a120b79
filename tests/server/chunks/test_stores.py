"""What every store does: the promises of `ChunkStore`, one test each."""

import hashlib
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from compeft_core.errors import InputError
from compeft_proto.errors import ChunkMismatchError, UnknownExpertError, UnreachableError
from compeft_server.chunks.directory_store import DirectoryStore
from compeft_server.chunks.object_store import ObjectStore, open_bucket
from compeft_server.chunks.store import CLAIM_SLACK_MS, PART_BYTES, ChunkStore
from tests.server.conftest import Store

CHUNK = bytes(range(256)) * 4096
NAME = hashlib.sha256(CHUNK).digest()
OTHER = hashlib.sha256(b"other").digest()
SENDER = "0123456789abcdef"


def in_ms(offset_ms: int = 0) -> int:
    return time.time_ns() // 1_000_000 + offset_ms


def send(store: ChunkStore, data: bytes = CHUNK, name: bytes = NAME) -> None:
    """All of a chunk, in two pieces."""
    for piece in (data[:1000], data[1000:]):
        store.append(SENDER, name, piece)


def test_what_was_put_is_read_by_its_digest(store: ChunkStore) -> None:
    assert not store.has(NAME)
    assert store.put(CHUNK) == NAME
    assert store.has(NAME)
    assert store.read(NAME) == CHUNK
    assert [(s.sha256, s.size) for s in store.chunks()] == [(NAME, len(CHUNK))]


def test_putting_twice_is_putting_once(store: ChunkStore) -> None:
    assert store.put(CHUNK) == store.put(CHUNK)
    assert len(list(store.chunks())) == 1


@pytest.mark.parametrize("offset", [0, 1, PART_BYTES, len(CHUNK) - 1, len(CHUNK)])
def test_a_chunk_is_streamed_from_any_offset(store: ChunkStore, offset: int) -> None:
    store.put(CHUNK)
    pieces = list(store.stream(NAME, offset))
    assert b"".join(pieces) == CHUNK[offset:]
    assert all(0 < len(piece) <= PART_BYTES for piece in pieces)


def test_what_is_not_there_is_named(store: ChunkStore) -> None:
    for ask in (lambda: store.read(NAME), lambda: next(store.stream(NAME, 0)), lambda: store.peek(SENDER, NAME)):
        with pytest.raises(UnknownExpertError, match=NAME.hex()[:16]):
            ask()
    with pytest.raises(UnknownExpertError, match=NAME.hex()[:16]):
        store.commit(SENDER, NAME)


def test_a_chunk_that_was_altered_is_never_handed_out(kept: Store) -> None:
    store = kept.reopen()
    store.put(CHUNK)
    kept.damage(NAME)
    with pytest.raises(ChunkMismatchError, match="has changed"):
        store.read(NAME)
    with pytest.raises(ChunkMismatchError, match="has changed"):
        next(store.stream(NAME, 0))


def test_a_part_survives_a_restart_and_is_no_chunk(kept: Store) -> None:
    send(kept.reopen(), CHUNK[:5000])
    store = kept.reopen()
    assert store.received(SENDER, NAME) == 5000
    assert store.received("another sender", NAME) == 0
    assert not store.has(NAME)
    assert list(store.chunks()) == []
    store.append(SENDER, NAME, CHUNK[5000:])
    store.check(SENDER, NAME)
    assert store.peek(SENDER, NAME) == CHUNK
    assert not store.has(NAME)


def test_a_committed_part_is_a_chunk_and_no_part(kept: Store) -> None:
    store = kept.reopen()
    send(store)
    store.check(SENDER, NAME)
    store.commit(SENDER, NAME)
    assert kept.reopen().read(NAME) == CHUNK
    assert store.received(SENDER, NAME) == 0
    assert store.peek(SENDER, NAME) == CHUNK


def test_committing_twice_or_what_another_has_committed_is_committing_once(store: ChunkStore) -> None:
    send(store)
    store.append("another", NAME, CHUNK)
    store.commit(SENDER, NAME)
    store.commit(SENDER, NAME)
    store.commit("another", NAME)
    assert len(list(store.chunks())) == 1


def test_a_part_that_is_not_its_digest_is_dropped(store: ChunkStore) -> None:
    send(store, b"y" * 2000)
    with pytest.raises(ChunkMismatchError, match="send it again"):
        store.check(SENDER, NAME)
    assert store.received(SENDER, NAME) == 0


def test_a_dropped_part_is_forgotten(store: ChunkStore) -> None:
    send(store)
    store.drop(SENDER, NAME)
    store.drop(SENDER, NAME)
    assert store.received(SENDER, NAME) == 0


def test_a_chunk_is_removed_if_nobody_claimed_it_since(store: ChunkStore) -> None:
    store.put(CHUNK)
    store.put(b"other")
    assert not store.remove(NAME, in_ms(-60_000))
    assert store.read(NAME) == CHUNK
    assert store.remove(NAME, in_ms(60_000))
    assert not store.remove(NAME, in_ms(60_000))
    assert not store.has(NAME)
    assert store.read(OTHER) == b"other"


def test_a_removed_chunk_can_be_put_again(store: ChunkStore) -> None:
    store.put(CHUNK)
    store.remove(NAME, in_ms(60_000))
    store.put(CHUNK)
    assert store.read(NAME) == CHUNK


def test_parts_are_removed_once_nobody_has_touched_them_for_long(store: ChunkStore) -> None:
    send(store, CHUNK[:2000])
    assert store.remove_parts(in_ms(-60_000)) == 0
    assert store.received(SENDER, NAME) == 2000
    assert store.remove_parts(in_ms(60_000)) == 1
    assert store.received(SENDER, NAME) == 0


@pytest.mark.parametrize("claim", ["put", "has", "commit", "commit of nothing sent"])
def test_a_claim_makes_an_old_chunk_young(tmp_path: Path, claim: str) -> None:
    store = DirectoryStore(tmp_path)
    store.put(CHUNK)
    os.utime(tmp_path / "chunks" / NAME.hex()[:2] / NAME.hex(), (0, 0))
    if claim == "commit":
        send(store)
        os.utime(tmp_path / "partial" / f"{SENDER}-{NAME.hex()}", (0, 0))
    claims = {"put": lambda: store.put(CHUNK), "has": lambda: store.has(NAME)}
    claims.get(claim, lambda: store.commit(SENDER, NAME))()
    assert not store.remove(NAME, in_ms(-60_000))


def test_a_claim_writes_an_old_object_again(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    store = ObjectStore(_local(bucket), tmp_path / "partial")
    store.put(CHUNK)
    path = bucket / NAME.hex()[:2] / NAME.hex()
    old = (datetime.now(UTC) - timedelta(milliseconds=CLAIM_SLACK_MS + 60_000)).timestamp()
    os.utime(path, (old, old))
    assert store.has(NAME)
    assert not store.remove(NAME, in_ms(-60_000))


def test_files_of_others_in_a_bucket_are_left_alone(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    (bucket / "ab").mkdir(parents=True)
    for name in ["readme", "ab/readme", f"ab/{NAME.hex()}"]:
        (bucket / name).write_bytes(b"x")
    assert list(ObjectStore(_local(bucket), tmp_path / "partial").chunks()) == []


def test_a_bucket_that_is_not_there_is_one_line(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.server.servers import s3_environment

    for name, value in s3_environment(s3).items():
        monkeypatch.setenv(name, value)
    store = ObjectStore(open_bucket("s3://nowhere"), tmp_path)
    with pytest.raises(UnreachableError, match="object store") as caught:
        store.put(CHUNK)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["file:///tmp/x", "ftp://x/y", "bucket", ""])
def test_only_buckets_that_are_durable_are_taken(url: str) -> None:
    with pytest.raises(InputError, match="it must begin with s3://, gs://, az://"):
        open_bucket(url)


def _local(folder: Path) -> object:
    from obstore.store import LocalStore

    return LocalStore(folder)
