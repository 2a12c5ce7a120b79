"""Every ledger and every store, one after the other: what a test here says holds for all of them."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
from obstore.store import LocalStore
from obstore.store import ObjectStore as Bucket
from sqlalchemy.engine import URL

from compeft_server.chunks.directory_store import DirectoryStore
from compeft_server.chunks.object_store import ObjectStore, open_bucket
from compeft_server.chunks.store import ChunkStore
from compeft_server.ledger.ledger import Ledger
from tests.server import servers
from tests.server.memory_store import MemoryStore

LEDGERS = ["sqlite", "postgresql"]
_number = count()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[URL]:
    """One PostgreSQL for all tests of a process."""
    with servers.postgresql() as url:
        yield url


@pytest.fixture(params=LEDGERS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | Path]:
    """A database with nothing in it: a path, or a URL."""
    if request.param == "sqlite":
        yield tmp_path / "ledger.sqlite"
        return
    with servers.database(request.getfixturevalue("postgresql")) as url:
        yield url


@pytest.fixture
def open_ledger(database: str | Path) -> Iterator[Callable[[], Ledger]]:
    """Opens one more ledger on the same database, as another process would."""
    opened: list[Ledger] = []

    def open_one() -> Ledger:
        opened.append(Ledger(database))
        return opened[-1]

    yield open_one
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_ledger: Callable[[], Ledger]) -> Ledger:
    """An empty ledger."""
    return open_ledger()


# Stores


class Store(NamedTuple):
    """A store, and how to get at what it keeps: another process's view of it, and the bytes of a chunk as they lie there."""

    reopen: Callable[[], ChunkStore]
    damage: Callable[[bytes], None]


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """One S3 server for all tests of a process: its address."""
    with servers.s3() as address:
        yield address


def _memory(_: pytest.FixtureRequest, __: Path) -> Store:
    store = MemoryStore()

    def damage(sha256: bytes) -> None:
        store._chunks[sha256] = (b"x", 0)

    return Store(lambda: store, damage)


def _directory(_: pytest.FixtureRequest, folder: Path) -> Store:
    def damage(sha256: bytes) -> None:
        (folder / "chunks" / sha256.hex()[:2] / sha256.hex()).write_bytes(b"x")

    return Store(lambda: DirectoryStore(folder), damage)


def _bucket(bucket: Bucket, folder: Path) -> Store:
    def damage(sha256: bytes) -> None:
        bucket.put(f"{sha256.hex()[:2]}/{sha256.hex()}", b"x")

    return Store(lambda: ObjectStore(bucket, folder / "partial"), damage)


def _local_bucket(_: pytest.FixtureRequest, folder: Path) -> Store:
    return _bucket(LocalStore(folder / "bucket", mkdir=True), folder)


def _s3_bucket(request: pytest.FixtureRequest, folder: Path) -> Store:
    address, name = request.getfixturevalue("s3"), f"chunks-{next(_number)}"
    servers.make_bucket(address, name)
    for variable, value in servers.s3_environment(address).items():
        request.getfixturevalue("monkeypatch").setenv(variable, value)
    return _bucket(open_bucket(f"s3://{name}/of/one"), folder)


STORES = {"memory": _memory, "directory": _directory, "bucket on disk": _local_bucket, "s3": _s3_bucket}


@pytest.fixture(params=STORES)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Every store, one after the other, with nothing in it."""
    return STORES[request.param](request, tmp_path / "store")


@pytest.fixture
def store(kept: Store) -> ChunkStore:
    """A store with nothing in it."""
    return kept.reopen()
