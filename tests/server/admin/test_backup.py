"""A backup taken while the aggregator serves brings the same aggregator back; a damaged one is refused by name."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.identity.edge_config import Edge
from compeft_core.errors import CompeftError, FormatError, InputError
from compeft_proto.clock import now_ms
from compeft_proto.errors import UnknownExpertError
from compeft_server.admin.backup import back_up
from compeft_server.admin.lineage import Versions
from compeft_server.admin.restore import restore
from compeft_server.app.server import Settings, start
from compeft_server.data_directory import Storage, choose_storage, open_ledger, open_store
from compeft_server.identity.aggregator_keys import earlier_keys, own_key, stage, take_up
from compeft_server.identity.authority_files import init, load
from compeft_server.ledger.audit import check
from tests.rounds.conftest import EXPERT, World, running, synced_by, trained

Members = list[tuple[tarfile.TarInfo, bytes]]


@contextmanager
def with_rounds(folder: Path) -> Iterator[World]:
    """An aggregator with three versions of two clients."""
    with running(folder) as made:
        clients = [made.edge("a"), made.edge("b")]
        for number in range(1, 4):
            run_round(made, clients, number)
        yield made


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with with_rounds(tmp_path) as made:
        yield made


def run_round(world: World, clients: list[EdgeClient], number: int) -> None:
    task = world.open_round(number)
    for i, client in enumerate(clients):
        synced_by(client, task)
        client.submit(task, trained(10 * number + i))
    world.close_round(number)


@pytest.fixture
def archive(world: World) -> Path:
    back_up(world.folder / "data", world.folder / "backup.tar", now_ms())
    return world.folder / "backup.tar"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """One backup, to be altered."""
    folder = tmp_path_factory.mktemp("whole")
    with with_rounds(folder):
        back_up(folder / "data", folder / "backup.tar", now_ms())
    return (folder / "backup.tar").read_bytes()


def test_a_restored_aggregator_is_the_same_aggregator(world: World, archive: Path) -> None:
    data = world.folder / "restored"
    restore(archive, data)
    ledger = open_ledger(data)
    server, port = start(Settings(data), ledger)
    key = world.enrol("reader")
    ledger.enrol("reader", key.public, "reader", now_ms())
    there = EdgeClient(Edge(f"127.0.0.1:{port}", key, world.aggregator.public, world.folder / "there", patience_s=0))
    here = EdgeClient(Edge(world.address, key, world.aggregator.public, world.folder / "here", patience_s=0))
    assert np.array_equal(there.sync(EXPERT).vector, here.sync(EXPERT).vector)
    twin = World(world.folder / "twin", f"127.0.0.1:{port}", ledger, own_key(data), [0], world.conductor_key)
    run_round(twin, [twin.edge("c")], 4)
    assert there.sync(EXPERT).version == 4
    versions = Versions(own_key(data), open_store(data), ledger)
    for number in range(5):
        versions.verify(EXPERT, number)
    check(ledger.audit_entries())
    server.stop(None).wait()
    ledger.close()


def test_a_backup_taken_while_rounds_close_is_of_one_instant(world: World) -> None:
    clients = [world.edge("c"), world.edge("d")]
    with ThreadPoolExecutor(1) as pool:
        rounds = pool.submit(lambda: [run_round(world, clients, number) for number in range(4, 9)])
        taken = 0
        while not rounds.done():
            back_up(world.folder / "data", world.folder / f"{taken}.tar", now_ms())
            taken += 1
        rounds.result()
    for number in {0, taken // 2, taken - 1}:
        data = world.folder / f"restored-{number}"
        restore(world.folder / f"{number}.tar", data)
        ledger = open_ledger(data)
        versions = Versions(own_key(data), open_store(data), ledger)
        versions.verify(EXPERT, ledger.head(EXPERT))
        ledger.close()


def test_private_things_stay_private(world: World, archive: Path) -> None:
    restore(archive, world.folder / "restored")
    for path in (archive, world.folder / "restored" / "aggregator.key", world.folder / "restored"):
        assert path.stat().st_mode & 0o077 == 0


def test_every_key_and_the_authority_come_back(world: World) -> None:
    data, restored = world.folder / "data", world.folder / "restored"
    init(data, ["localhost"], now_ms())
    stage(data)
    old = own_key(data).public
    take_up(data, now_ms())
    back_up(data, world.folder / "backup.tar", now_ms())
    restore(world.folder / "backup.tar", restored)
    assert own_key(restored).public == own_key(data).public != old
    assert earlier_keys(restored) == (old,)
    assert load(restored).bundle == load(data).bundle
    assert {path.stat().st_mode & 0o077 for path in (restored / "ca", *(restored / "ca").iterdir())} == {0}
    ledger = open_ledger(restored)
    Versions(own_key(restored), open_store(restored), ledger, earlier_keys(restored)).verify(EXPERT, 3)
    ledger.close()


def test_superseded_residuals_are_not_carried_along(world: World, archive: Path) -> None:
    restore(archive, world.folder / "restored")
    older = {sha256 for v in world.ledger.versions(EXPERT, 0, 2) for sha256 in v.residual}
    assert older
    assert older.isdisjoint(stored.sha256 for stored in open_store(world.folder / "restored").chunks())


def read(archive: Path) -> Members:
    with tarfile.open(archive) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]  # all are files


def write(archive: Path, members: Members) -> None:
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        for member, data in members:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))


def renamed(name: str) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        members[-1][0].name = name
        return members

    return change


def of_kind(kind: bytes, target: str = "") -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        member = tarfile.TarInfo(members[-1][0].name)
        member.type, member.linkname = kind, target
        return [*members[:-1], (member, b"")]

    return change


def with_head(**values: object) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        head = json.loads(members[0][1]) | values
        return [(members[0][0], json.dumps(head).encode()), *members[1:]]

    return change


def with_bytes(at: int, change_data: Callable[[bytes], bytes]) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        members[at] = (members[at][0], change_data(members[at][1]))
        return members

    return change


def with_forged_ledger(members: Members) -> Members:
    forged = members[1][1].replace(b'"role":"edge"', b'"role":"EDGE"')
    members[1] = (members[1][0], forged)
    return with_head(ledger_sha256=hashlib.sha256(forged).hexdigest())(members)


def without_last(members: Members) -> Members:
    return with_head(chunks=len(members) - 4)(members[:-1])


CHANGES: dict[str, tuple[Callable[[Members], Members], str]] = {
    "a path outside": (renamed("../../evil"), "is not the chunk"),
    "an absolute path": (renamed("/tmp/evil"), "is not the chunk"),
    "a chunk without its folder": (lambda m: renamed(m[-1][0].name.removeprefix("chunks/"))(m), "is not the chunk"),
    "a symbolic link": (of_kind(tarfile.SYMTYPE, "/etc/passwd"), "not a plain file"),
    "a hard link": (of_kind(tarfile.LNKTYPE, "aggregator.key"), "not a plain file"),
    "a device": (of_kind(tarfile.CHRTYPE), "not a plain file"),
    "an extended header": (of_kind(tarfile.XHDTYPE), "not a plain file"),
    "an altered chunk": (with_bytes(-1, lambda data: b"x" + data[1:]), "is not the chunk"),
    "a chunk too long": (with_bytes(-1, lambda data: bytes(2**20 + 1)), "expected at most 1048576"),
    "a chunk twice": (lambda m: [*m, m[-1]], "has more than"),
    "a chunk too few": (lambda m: m[:-1], "chunks"),
    "a chunk too few, hidden": (without_last, "lacks 1 chunks that its ledger names"),
    "an altered ledger": (with_bytes(1, lambda data: data[:-1] + b"x"), r"ledger\.sqlite is torn, or is not"),
    "a forged ledger": (with_forged_ledger, "was altered after it was written"),
    "a ledger of another size": (with_bytes(1, lambda data: data + b"x"), "bytes, backed up were"),
    "another key": (with_bytes(2, lambda data: data[:-10] + data[10:]), r"aggregator\.key is not the one"),
    "another order": (lambda m: [m[0], m[2], m[1], *m[3:]], r"ledger\.sqlite is expected"),
    "a head too long": (with_head(program="x" * 2**17), "expected at most 65536"),
    "a head of the future": (with_head(format=2), "has format 2, this program reads 1"),
    "a head of nothing": (with_bytes(0, lambda _: b"{}"), r"backup\.json is not"),
    "a head with another file": (with_head(files={"aggregator.key": "", "../evil": ""}), "names other files"),
    "a head without a key": (with_head(files={}), "names other files"),
    "a head of other kinds": (with_head(chunks="many"), "wrong kind"),
    "nothing": (lambda _: [], r"backup\.json is expected"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_archive_that_is_not_what_was_written_is_refused_by_name(tmp_path: Path, whole: bytes, change: str) -> None:
    archive, (alter, says) = tmp_path / "backup.tar", CHANGES[change]
    archive.write_bytes(whole)
    write(archive, alter(read(archive)))
    with pytest.raises(CompeftError, match=says) as caught:
        restore(archive, tmp_path / "restored")
    assert change == "a forged ledger" or str(archive) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["backup.tar"]
    assert not Path("/tmp/evil").exists()


def test_an_archive_torn_anywhere_is_refused(tmp_path: Path, whole: bytes) -> None:
    archive = tmp_path / "backup.tar"
    last = max(i for i in range(0, len(whole), 512) if whole[i : i + 512].strip(b"\0"))
    for length in [0, 1, 511, 512, 700, len(whole) // 3, len(whole) // 2, last - 1, last, last + 1]:
        archive.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"backup\.tar"):
            restore(archive, tmp_path / "restored")
        assert [path.name for path in tmp_path.iterdir()] == ["backup.tar"]


def test_what_is_there_is_not_overwritten(world: World, archive: Path) -> None:
    with pytest.raises(InputError, match="is not empty"):
        restore(archive, world.folder / "data")
    with pytest.raises(InputError, match="exists already"):
        back_up(world.folder / "data", archive, now_ms())
    (world.folder / "empty").mkdir()
    restore(archive, world.folder / "empty")


def test_what_cannot_be_backed_up_says_why(world: World, tmp_path: Path) -> None:
    choose_storage(tmp_path / "pg", Storage("postgresql+psycopg://db/compeft"))
    with pytest.raises(InputError, match="run pg_dump"):
        back_up(tmp_path / "pg", tmp_path / "x.tar", now_ms())
    with pytest.raises(InputError, match=r"holds no ledger\.sqlite"):
        back_up(tmp_path / "nothing", tmp_path / "x.tar", now_ms())
    for path in (world.folder / "data" / "chunks").glob("*/*"):
        path.unlink()
    with pytest.raises(UnknownExpertError, match="if `compeft gc` ran meanwhile, back up again"):
        back_up(world.folder / "data", tmp_path / "x.tar", now_ms())
    assert not (tmp_path / "x.tar").exists()


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    with pytest.raises(FormatError, match="or is not a backup"):
        restore(tmp_path / "x", tmp_path / "data")
    with pytest.raises(InputError, match="cannot read"):
        restore(tmp_path / "y", tmp_path / "data")
