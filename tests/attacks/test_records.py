"""What is moved is recorded or not served, what is refused again and again becomes few rows, and errors tell nothing of the inside."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from compeft_core.errors import CompeftError
from compeft_proto.errors import StorageFullError, ThrottledError, TransferError, UnknownExpertError
from compeft_server.domain.limits import Limits
from compeft_server.domain.records import Refusal
from compeft_server.rpc.refusal_rows import RefusalRows
from tests.rounds.conftest import EXPERT, World, running


def run(world: World, *statements: str) -> None:
    """SQL of somebody who has the ledger's file."""
    engine = sa.create_engine(f"sqlite:///{world.folder / 'data' / 'ledger.sqlite'}")
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def downs(world: World) -> int:
    return len([t for t in world.ledger.transfers(EXPERT) if t.direction == "down"])


def refused(call: Callable[[], object], kind: type[CompeftError]) -> bool:
    try:
        call()
    except kind:
        return True
    return False


def test_nothing_is_served_while_transfers_cannot_be_recorded_and_none_is_lost(world: World) -> None:
    client = world.edge("edge")
    run(world, "CREATE TRIGGER broken BEFORE INSERT ON transfers BEGIN SELECT RAISE(ABORT, 'broken'); END")
    calls = 1
    client.sync(EXPERT)
    until(lambda: refused(lambda: client.sync(EXPERT), StorageFullError))
    run(world, "DROP TRIGGER broken")
    before = downs(world)
    client.sync(EXPERT)
    until(lambda: downs(world) >= before + calls + 1)


def test_a_fault_of_the_database_reaches_a_client_without_sql(world: World) -> None:
    client = world.edge("edge")
    run(world, "ALTER TABLE versions RENAME TO gone")
    with pytest.raises(TransferError, match="INTERNAL: the aggregator failed: its log says why") as caught:
        client.sync(EXPERT)
    assert "SELECT" not in str(caught.value)
    run(world, "ALTER TABLE gone RENAME TO versions")
    assert client.sync(EXPERT).version == 0


def test_refused_calls_are_throttled_and_become_few_rows(tmp_path: Path) -> None:
    with running(tmp_path, Limits(calls_per_s_per_client=0.01, calls_burst_per_client=20)) as world:
        client = world.edge("edge")
        heard = [refused(lambda: client.sync("nope"), UnknownExpertError) for _ in range(20)]
        with pytest.raises(ThrottledError, match="used up the share of calls/s"):
            client.sync("nope")
        assert all(heard)
        assert len(world.ledger.refusals("")) == 5


def test_refusals_alike_become_one_row_a_minute_that_counts_them() -> None:
    now = [0.0]
    rows = RefusalRows(lambda: now[0])
    alike = Refusal(0, "ipv4:192.0.2.1:1", EXPERT, 1, "forbidden", "no")
    made = [rows.row("key", alike) for _ in range(100)]
    assert [row is not None for row in made] == [True] * 5 + [False] * 95
    now[0] = 61.0
    later = rows.row("key", alike)
    assert later is not None
    assert later.reason == "no (95 more like it before)"
    assert rows.row("another", alike) is not None


def test_a_client_that_varies_its_refusals_makes_a_bounded_number_of_rows() -> None:
    rows = RefusalRows(lambda: 0.0)
    made = [rows.row("key", Refusal(0, "p", EXPERT, number, "forbidden", "no")) for number in range(5000)]
    assert len([row for row in made if row]) == 100
