"""Whoever can write to the database: every table that the audit log describes is compared with it, and the log against what clients saw."""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from compeft_proto.clock import now_ms
from compeft_proto.errors import ForkedLogError, RewoundLogError
from compeft_proto.keys import new_key
from compeft_proto.site_layout import HEAD_FILE
from compeft_server.admin import policy_admin
from compeft_server.admin.audit_check import verify_against, verify_log
from compeft_server.app.server import Settings, start
from compeft_server.data_directory import LEDGER_FILE, open_ledger
from compeft_server.flower.conductor import ClientMetric
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.ledger import audit
from compeft_server.ledger.audit import START, AuditError, Event, Subtrees, link
from compeft_server.ledger.ledger import Ledger
from tests.attacks.processes import compeft
from tests.rounds.conftest import EXPERT, RUN, World, running, synced_by, trained

EDITS = {
    "a transfer that counts fewer bytes": ("UPDATE transfers SET payload_bytes = 1 WHERE id = 2", "transfers were altered"),
    "a transfer of somebody else": ("UPDATE transfers SET keyid = 'x' WHERE id = 1", "of transfers were altered"),
    "a transfer that took no time": ("UPDATE transfers SET seconds = seconds + 1e-9 WHERE id = 1", "of transfers were altered"),
    "a transfer that is gone": ("DELETE FROM transfers WHERE id = 2", "of transfers: 0 are there"),
    "the last transfers gone": ("DELETE FROM transfers WHERE id > 3", "of transfers: 0 are there"),
    "a transfer that never was": (
        "INSERT INTO transfers SELECT max(id) + 1, at_ms, keyid, expert, run, round, version, direction, dense_fp32_bytes, payload_bytes,"
        " wire_received_bytes, wire_sent_bytes, seconds, relayed_bytes, flow_bytes, flow_seconds FROM transfers",
        "of transfers is not in the audit log",
    ),
    "a better metric": ("UPDATE quality SET value = 0.99", "of quality were altered"),
    "a metric that is gone": ("DELETE FROM quality", "of quality: 0 are there"),
    "a metric that never was": (
        "INSERT INTO quality SELECT 99, at_ms, expert, run, round, version, 'dense', client, metric, value, num_examples, reporter"
        " FROM quality",
        "row 99 of quality is not in the audit log",
    ),
    "a member made conductor": ("UPDATE keys SET role = 'conductor' WHERE name = 'a'", "member 'a' is 'a', conductor"),
    "a revoked member back": (
        "UPDATE keys SET revoked_at_ms = NULL WHERE name = 'gone'",
        "member 'gone' is 'gone', edge, .* in force",
    ),
    "another name for a key": ("UPDATE keys SET name = 'mallory' WHERE name = 'a'", "the audit log says 'a', edge"),
    "another public key": ("UPDATE keys SET public = zeroblob(32) WHERE name = 'a'", "member 'a' is another public key"),
    "a key that nobody enrolled": (
        "INSERT INTO keys VALUES ('66687aadf862bd776c8fc18b8e9f8e20', zeroblob(32), 'mallory', 'edge', 1, NULL, NULL)",
        "member 'mallory' is enrolled without an audit entry",
    ),
    "a key that is gone": ("DELETE FROM keys WHERE name = 'unused'", "member 'unused' is in the audit log, but its row is gone"),
    "a rule turned round": (
        "UPDATE rules SET effect = 'allow' WHERE who = 'gone'",
        "rules has a row that no audit entry describes",
    ),
    "a rule that is gone": ("DELETE FROM rules WHERE id = 1", "rules lacks the row of an audit entry"),
    "a rule that nobody made": (
        "INSERT INTO rules SELECT 99, at_ms, expert, 'mallory', action, effect, from_version, until_ms, channel FROM rules WHERE id = 1",
        "rules has a row that no audit entry describes: allow .*mallory",
    ),
    "a channel moved": ("UPDATE channel_moves SET version = 0", "channel_moves has a row that no audit entry describes"),
    "a retirement taken back": ("UPDATE retirements SET retired = 0", "retirements has a row that no audit entry describes"),
    "a refusal that is gone": ("DELETE FROM refusals", "refusals lacks the row of an audit entry"),
    "a refusal of another reason": ("UPDATE refusals SET reason = 'none'", "refusals has a row that no audit entry describes"),
    "an update of another key": (
        "UPDATE submissions SET keyid = (SELECT keyid FROM keys WHERE name = 'unused') WHERE rowid = 1",
        "submissions has a row that no audit entry describes",
    ),
    "a version with another state": ("UPDATE versions SET state_digest = zeroblob(32) WHERE version = 1", "versions has a row"),
    "a version that is gone": ("DELETE FROM versions WHERE version = 1", "versions lacks the row of an audit entry"),
    "a round opened again": ("UPDATE rounds SET closed_at_ms = NULL", "rounds lacks the row of an audit entry"),
    "a fetch that is gone": ("DELETE FROM fetches", "fetches lacks the row of an audit entry"),
    "an invitation for another role": (
        "UPDATE invitations SET role = 'conductor'",
        "invitations has a row that no audit entry describes",
    ),
    "the log emptied": ("DELETE FROM audit", "it was emptied"),
    "the newest entries gone": (
        "DELETE FROM audit WHERE id > 8",
        "without an audit entry|not in the audit log|no audit entry describes",
    ),
    "an entry altered": ("UPDATE audit SET subject = 'b' WHERE id = 3", "audit entry 3 .* was altered"),
    "an entry gone": ("DELETE FROM audit WHERE id = 3", "audit entry 3 is missing"),
    "nodes of the tree altered": ("UPDATE audit SET nodes = zeroblob(96) WHERE id = 4", "audit entry 4 .* was altered"),
}


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of an aggregator that was used in every way, and beside it what its clients remember."""
    folder = tmp_path_factory.mktemp("used")
    with running(folder) as world:
        _use(world)
    return folder


def _use(world: World) -> None:
    clients = {name: world.edge(name) for name in ("a", "b")}
    world.enrol("gone")
    world.enrol("unused")
    policy_admin.rule(world.ledger, "deny", EXPERT, "gone", ("fetch",), now_ms())
    world.ledger.revoke("gone", now_ms())
    assert compeft("clients", "invite", "later", "--data", str(world.folder / "data"), "--address", "localhost:1").returncode == 0
    task = world.open_round()
    for number, client in enumerate(clients.values()):
        synced_by(client, task)
        client.submit(task, trained(number))
    world.close_round()
    policy_admin.promote(world.ledger, EXPERT, 1, "stable", now_ms())
    policy_admin.retire(world.ledger, EXPERT, 0, now_ms())
    world.conductor().report(EXPERT, ClientMetric(RUN, 1, 1, "synced", "", "accuracy", 0.5, 300))
    for client in clients.values():
        client.sync(EXPERT)
    with pytest.raises(Exception, match="no enrolled key signed"):
        world.edge("stranger", new_key()).sync(EXPERT)
    world._wait(lambda: len(world.ledger.transfers(EXPERT)) >= 6)


@pytest.fixture
def copy(used: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    shutil.copytree(used, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def ledger(copy: Path) -> Iterator[Ledger]:
    """Its ledger."""
    opened = open_ledger(copy / "data")
    yield opened
    opened.close()


def edit(copy: Path, *statements: str) -> None:
    """What somebody with a shell does."""
    connection = sqlite3.connect(copy / "data" / LEDGER_FILE)
    for statement in statements:
        assert connection.execute(statement).rowcount, statement
    connection.commit()
    connection.close()


def rewrite(copy: Path, without: int) -> None:
    """Leave out one entry and make all later hashes and nodes fit: what somebody does who knows how the log is made."""
    connection = sqlite3.connect(copy / "data" / LEDGER_FILE)
    rows = connection.execute("SELECT at_ms, action, subject, detail FROM audit WHERE id != ? ORDER BY id", (without,)).fetchall()
    connection.execute("DELETE FROM audit")
    before, subtrees = START, Subtrees()
    for number, row in enumerate(rows, start=1):
        happened = Event(*row)
        before = link(before, happened)
        nodes = b"".join(subtrees.add(number, happened))
        connection.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?)", (number, *row, before, nodes))
    connection.commit()
    connection.close()


def test_an_honest_ledger_holds_with_every_kind_of_row_in_it(copy: Path, ledger: Ledger) -> None:
    found = verify_log(ledger)
    assert all(found.rows.values()), found.rows
    assert found.rows["keys"] == 5
    heads = verify_against(ledger, [copy / "state-a", copy / "state-b", copy / "data"], (own_key(copy / "data").public,))
    assert all(0 < head.size <= found.entries for _, head in heads)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_by_hand_is_named(copy: Path, name: str) -> None:
    statement, words = EDITS[name]
    edit(copy, statement)
    ledger = open_ledger(copy / "data")
    with pytest.raises(AuditError, match=words):
        verify_log(ledger)
    ledger.close()


def test_the_command_fails_and_names_the_edited_row(copy: Path) -> None:
    assert compeft("audit", "verify", "--data", str(copy / "data"), "--against", str(copy / "state-a")).returncode == 0
    edit(copy, "UPDATE transfers SET payload_bytes = 1 WHERE id = 2")
    done = compeft("audit", "verify", "--data", str(copy / "data"))
    assert done.returncode != 0
    assert "rows 2 to 2 of transfers were altered" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log_that_was_rewritten_to_hold_is_caught_by_what_a_client_remembers(copy: Path) -> None:
    ledger = open_ledger(copy / "data")
    moved = next(e.number for e in ledger.audit_entries() if e.event.action == "promote")
    ledger.close()
    edit(copy, "DELETE FROM channel_moves")
    rewrite(copy, moved)
    again = open_ledger(copy / "data")
    verify_log(again)
    keys = (own_key(copy / "data").public,)
    with pytest.raises(ForkedLogError, match="state-b has seen other entries than the first"):
        verify_against(again, [copy / "state-b"], keys)
    again.close()
    done = compeft("audit", "verify", "--data", str(copy / "data"), "--against", str(copy / "state-b"))
    assert done.returncode != 0
    assert "it was rewritten" in done.stderr


def test_a_log_whose_oldest_entries_were_exchanged_is_told_to_every_client_and_not_served(copy: Path) -> None:
    rewrite(copy, 1)
    edit(copy, "DELETE FROM keys WHERE name = 'conductor' AND 0 OR name = 'nobody' OR name = 'unused'")
    ledger = open_ledger(copy / "data")
    for _ in range(3):
        ledger.membership.note("make it long", "enough", now_ms())
    keys = (own_key(copy / "data").public,)
    with pytest.raises(ForkedLogError, match="has seen other entries than the first"):
        verify_against(ledger, [copy / "state-a"], keys)
    ledger.close()
    done = compeft("serve", "--data", str(copy / "data"), "--port", "0")
    assert done.returncode != 0
    assert f"remove {copy / 'data' / HEAD_FILE} if this one is meant" in done.stderr


def test_everything_emptied_is_not_served_and_not_verified(copy: Path) -> None:
    (copy / "data" / LEDGER_FILE).unlink()
    for beside in (copy / "data").glob("ledger.sqlite-*"):
        beside.unlink()
    Ledger(copy / "data" / LEDGER_FILE).close()
    for command in ("audit verify", "serve --port 0"):
        done = compeft(*command.split(), "--data", str(copy / "data"))
        assert done.returncode != 0, command
        assert "entries of the audit log, the ledger has 0: it was rewound or emptied" in done.stderr


def test_a_client_of_a_restored_older_backup_is_told_what_happened(tmp_path: Path) -> None:
    with running(tmp_path) as world:
        client = world.edge("a")
        client.sync(EXPERT)
        shutil.copytree(tmp_path / "data", tmp_path / "older")
        (tmp_path / "older" / HEAD_FILE).unlink()
        world.enrol("b")
        client.sync(EXPERT)
    older = open_ledger(tmp_path / "older")
    server, port = start(Settings(tmp_path / "older"), older)
    try:
        edge = client._edge.__class__(
            f"127.0.0.1:{port}", client._edge.key, world.aggregator.public, client._edge.state, patience_s=0
        )
        again = client.__class__(edge)
        with pytest.raises(RewoundLogError, match="it was restored from an older backup, or rewound"):
            again.sync(EXPERT)
        (client._edge.state / HEAD_FILE).unlink()
        assert again.sync(EXPERT).version == 0
    finally:
        server.stop(None).wait()
        older.close()


def test_an_aggregator_that_shows_two_clients_two_logs_is_caught_by_whoever_meets_both(tmp_path: Path) -> None:
    with running(tmp_path) as world:
        client, edge = world.edge("a"), None
        client.sync(EXPERT)
        world._wait(lambda: len(world.ledger.transfers(EXPERT)) >= 1)
        shutil.copytree(tmp_path / "data", tmp_path / "fork")
        world.enrol("only here")
        client.sync(EXPERT)
    (tmp_path / "fork" / HEAD_FILE).unlink()
    fork = open_ledger(tmp_path / "fork")
    for number in range(9):
        fork.enrol(f"only there {number}", new_key().public, "edge", now_ms())
    server, port = start(Settings(tmp_path / "fork"), fork)
    try:
        edge = client._edge.__class__(
            f"127.0.0.1:{port}", client._edge.key, world.aggregator.public, client._edge.state, patience_s=0
        )
        with pytest.raises(ForkedLogError, match="does not begin with the"):
            client.__class__(edge).sync(EXPERT)
    finally:
        server.stop(None).wait()
        fork.close()


def test_the_appended_nodes_are_those_of_the_definition(ledger: Ledger) -> None:
    subtrees = Subtrees()
    for entry in ledger.audit_entries():
        assert b"".join(subtrees.add(entry.number, entry.event)) == entry.nodes
    assert audit.check(ledger.audit_entries()) == ledger.audit_entries()[-1].hash
    assert subtrees.root == verify_log(ledger).root
