"""Disks that fill up, and files that were torn: a typed error with a way out, nothing half-stored, and the next round works."""

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compeft_client.exchange.edge_client import EdgeClient, Trained
from compeft_core import Compression, layout_of
from compeft_proto.chunk_refs import CHUNK_BYTES
from compeft_proto.errors import ChunkMismatchError, StorageFullError, TransferError
from compeft_proto.round_task import RoundTask
from compeft_server.domain.limits import Limits
from tests.faults.storm import Storm
from tests.rounds.conftest import EXPERT, ORIGIN, RUN, UPLINK, World, genesis, running, synced_by, trained
from tests.rounds.test_resume import Cutter

LARGE = layout_of({"a.lora_A": (8, 500), "head": (1500, 2000)}, dense=["head"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder whose `data` is a file system of 12 MB of its own."""
    data = tmp_path / "data"
    data.mkdir()
    may_mount = os.geteuid() == 0 and shutil.which("mount")
    if not may_mount or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", data], check=False).returncode:
        pytest.skip("mounting a small tmpfs takes root and the right to mount")
    yield tmp_path
    subprocess.run(["umount", "-l", data], check=True)


def fill(data: Path, leave: int) -> Path:
    """A file that leaves this number of bytes free, or None if somebody else is writing."""
    filler = data / "filler"
    with suppress(OSError):
        filler.write_bytes(bytes(shutil.disk_usage(data).free - leave))
    return filler


def large(world: World, number: int) -> tuple[EdgeClient, RoundTask, Trained]:
    """A client that is about to send 6 MB."""
    name = f"large-{number}"
    world.conductor().publish(genesis(LARGE, name))
    client, opened = world.edge(name), world.conductor().open_round(name, RUN, 1, 600.0)
    client.sync(name)
    values = np.random.default_rng(number).normal(0, 1e-3, LARGE.size).astype(np.float32)
    return client, RoundTask(name, RUN, 1, opened.round_nonce, 0, Compression(0.5, "norm")), Trained(values, 10, {}, ORIGIN)


def test_a_full_disk_is_a_typed_error_and_everything_goes_on_once_there_is_room(small_disk: Path) -> None:
    with running(small_disk, Limits(min_free_bytes=0)) as world:
        client, task, vector = large(world, 1)
        filler = fill(small_disk / "data", 3 * 2**20)
        with pytest.raises(StorageFullError, match="its operator must make room") as caught:
            client.submit(task, vector)
        assert caught.value.retry_after_ms > 0
        assert world.ledger.submissions("large-1", RUN, 1) == []
        assert list((small_disk / "data" / "chunks").rglob("*")) == []
        filler.unlink()
        assert client.resume("large-1") is not None
        filler = fill(small_disk / "data", 0)
        with pytest.raises(StorageFullError):
            world.conductor().close_round("large-1", RUN, 1, "average", 1.0, UPLINK)
        assert client.sync("large-1").version == 0
        filler.unlink()


def test_a_disk_that_fills_in_the_middle_of_an_upload_keeps_what_arrived(small_disk: Path) -> None:
    with running(small_disk, Limits(min_free_bytes=0)) as world:
        client, task, vector = large(world, 1)
        data, size = small_disk / "data", 2 * LARGE.size
        with ThreadPoolExecutor(1) as pool:
            upload = pool.submit(client.submit, task, vector)
            while sum(f.stat().st_size for f in (data / "partial").iterdir()) < 2 * 2**20 and not upload.done():
                time.sleep(0.001)
            filler = fill(data, 0)
            with pytest.raises(StorageFullError):
                upload.result()
        filler.unlink()
        here = sum(f.stat().st_size for f in (data / "partial").iterdir())
        assert here > 0
        assert client.resume("large-1") is not None
        moved = world.transfers_of("large-1", "up", 3)
        assert moved[-1].wire_received_bytes < size


def test_a_chunk_that_was_torn_is_named_and_not_handed_out(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round()
    synced_by(client, task)
    client.submit(task, trained(1))
    world.close_round()
    version = world.ledger.versions(EXPERT, 0, 1)[0]
    for chunk in (world.folder / "data" / "chunks").rglob("*"):
        if chunk.is_file() and chunk.stat().st_size == version.payload_bytes:
            os.truncate(chunk, version.payload_bytes - 1)
    with pytest.raises(ChunkMismatchError, match="has changed in the aggregator's store: restore it from a backup"):
        world.edge("reader").sync(EXPERT)


def test_a_partial_upload_that_was_torn_goes_on_from_what_is_left(world: World) -> None:
    client, task, vector = large(world, 1)
    cutter = Cutter(world.address)
    cutter.up_limit = 3_500_000
    with pytest.raises(TransferError):
        EdgeClient(replace(client._edge, address=cutter.address)).submit(task, vector)
    cutter.close()
    torn = max((world.folder / "data" / "partial").iterdir(), key=lambda path: path.stat().st_size)
    os.truncate(torn, 1000)
    receipt = client.resume("large-1")
    assert receipt is not None
    assert receipt.payload_bytes > 5 * CHUNK_BYTES


def test_a_torn_write_ahead_log_loses_what_was_never_acknowledged_and_nothing_else(tmp_path: Path) -> None:
    with Storm(tmp_path, clients=1, seed=3) as storm:
        storm.round(0)
        storm.site.kill()
        storm.site.ledger.close()
        log = storm.site.data / "ledger.sqlite-wal"
        with log.open("ab") as torn:
            torn.write(os.urandom(3000))
        with sqlite3.connect(storm.site.data / "ledger.sqlite") as database:
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        database.close()
        storm.site.reopen()
        storm.site.start()
        storm.round(0)
        assert storm.check().rounds == 2
