"""The audit log: everything decided is in it, in order, and no later change goes unseen."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from compeft_proto.clock import now_ms
from compeft_proto.errors import RoundClosedError
from compeft_proto.keys import new_key
from compeft_server.ledger import schema
from compeft_server.ledger.audit import AuditError, Entry, check
from compeft_server.ledger.checks.recorded_rows import RECORD
from tests.rounds.conftest import World, synced_by, trained


def decisions(world: World) -> list[Entry]:
    """The entries but for those that cover transfers and metrics, which come a moment after a call."""
    return [entry for entry in world.ledger.audit_entries() if entry.event.action != RECORD]


def test_every_decision_is_in_the_log_in_order(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round()
    synced_by(client, task)
    client.submit(task, trained(1))
    world.close_round()
    late = world.edge("late")
    late.sync(task.expert, 0)
    with pytest.raises(RoundClosedError):
        late.submit(task, trained(2))
    world.ledger.revoke("late", now_ms())
    entries = decisions(world)
    actions = [entry.event.action for entry in entries]
    assert actions == [
        "enrol",
        "publish",
        "allow",
        "allow",
        "allow",
        "enrol",
        "open round",
        "fetch",
        "accept",
        "close round",
        "publish",
        "enrol",
        "fetch",
        "refuse",
        "revoke",
    ]
    everything = world.ledger.audit_entries()
    assert check(everything) == everything[-1].hash
    assert '"code":"round_closed"' in entries[13].event.detail


@pytest.mark.parametrize("change", [{"detail": '{"role":"conductor"}'}, {"at_ms": 1}, {"subject": "other"}, {"hash": bytes(32)}])
def test_an_altered_entry_is_named(world: World, change: dict[str, object]) -> None:
    world.enrol("a")
    with world.ledger._engine.begin() as connection:
        connection.execute(sa.update(schema.audit).where(schema.audit.c.id == 2), change)
    with pytest.raises(AuditError, match="audit entry 2 "):
        check(world.ledger.audit_entries())


def test_a_dropped_entry_is_named(world: World) -> None:
    world.enrol("a")
    with world.ledger._engine.begin() as connection:
        connection.execute(sa.delete(schema.audit).where(schema.audit.c.id == 2))
    with pytest.raises(AuditError, match="audit entry 2 is missing"):
        check(world.ledger.audit_entries())


def test_many_writers_at_once_make_one_chain(world: World) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: world.ledger.enrol(f"m{i}", new_key().public, "edge", now_ms()), range(40)))
    assert len(decisions(world)) == 45
    check(world.ledger.audit_entries())


def test_what_fails_leaves_no_entry(world: World) -> None:
    before = len(decisions(world))
    world.open_round()
    with pytest.raises(Exception, match="exists already"):
        world.ledger.open_round(world.ledger.rounds("sentiment")[0])
    assert len(decisions(world)) == before + 1
