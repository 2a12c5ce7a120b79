"""What every ledger does, also with several processes on one database."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from compeft_core.errors import LimitError
from compeft_proto.errors import BusyError, ConflictError, DuplicateError, RoundClosedError
from compeft_proto.keys import new_key
from compeft_server.domain.records import Member, Sequences
from compeft_server.ledger.audit import check
from compeft_server.ledger.ledger import Ledger
from tests.server.facts import CLOSED, EXPERT, OPEN, QUALITY, REFUSAL, TRANSFER, digest, submission, version, with_round

OpenOne = Callable[[], Ledger]


def test_what_was_recorded_is_there_for_the_next_process(open_ledger: OpenOne) -> None:
    ledger = open_ledger()
    a, b = with_round(ledger)
    ledger.accept(submission(a))
    ledger.close_round(CLOSED, version(1), [digest("update")])
    ledger.record_transfer(TRANSFER)
    ledger.record_refusal(REFUSAL)
    ledger.record_quality(QUALITY)
    again = open_ledger()
    assert again.members() == [Member("a", a, "edge", revoked=False), Member("b", b, "edge", revoked=False)]
    assert again.member(a.keyid) == again.members()[0]
    assert again.expert("sentiment") == EXPERT
    assert again.experts() == ["sentiment"]
    assert again.versions("sentiment", -1, 9) == [version(0), version(1)]
    assert again.head("sentiment") == 1
    assert again.rounds("sentiment") == [CLOSED]
    assert again.submission(digest("update")) == replace(submission(a), merged_in=1)
    assert again.sequences("sentiment", a.keyid) == Sequences(1, 0, 1)
    assert again.transfers("sentiment") == [TRANSFER]
    assert again.refusals("sentiment") == [REFUSAL]
    assert again.quality("sentiment") == [QUALITY]


def test_what_was_never_recorded_is_not_there(ledger: Ledger) -> None:
    assert ledger.member("0" * 32) is None
    assert ledger.expert("sentiment") is None
    assert ledger.round("sentiment", "run-1", 1) is None
    assert ledger.submission(digest("update")) is None
    assert ledger.sequences("sentiment", "0" * 32) == Sequences(0, 0, 0)
    assert ledger.audit_entries() == []


@pytest.mark.parametrize(("settled", "newest"), [((4,), 4), ((4, 2, 4), 4), ((2**64 - 1,), 2**63 - 1)])
def test_what_a_client_was_told_of_counts_as_what_was_accepted(ledger: Ledger, settled: tuple[int, ...], newest: int) -> None:
    a, b = with_round(ledger)
    for sequence in settled:
        ledger.settle("sentiment", a.keyid, sequence)
    ledger.accept(submission(b))
    known = [ledger.standing("sentiment", "run-1", 1, key.keyid, digest("new")).accepted_sequence for key in (a, b)]
    assert known == [newest, 1]


def test_names_come_in_the_order_of_their_bytes(ledger: Ledger) -> None:
    names = ["Zoe", "_x", "a-b", "a.b", "ab", "zoe", "ä"]
    for name in reversed(names):
        ledger.enrol(name, new_key().public, "edge", 1)
    for expert in reversed(names[:6]):
        ledger.create(replace(EXPERT, name=expert), version(0, expert))
    assert [m.name for m in ledger.members()] == names
    assert ledger.experts() == names[:6]


def test_a_name_or_a_key_is_enrolled_once(ledger: Ledger) -> None:
    key = new_key().public
    ledger.enrol("a", key, "edge", 1)
    ledger.enrol("a", key, "edge", 2)
    for name, other, role in [("a", new_key().public, "edge"), ("b", key, "edge"), ("a", key, "reader")]:
        with pytest.raises(ConflictError, match="'a' is enrolled"):
            ledger.enrol(name, other, role, 3)
    assert len(ledger.audit_entries()) == 1


def test_a_member_is_revoked_once(ledger: Ledger) -> None:
    ledger.enrol("a", new_key().public, "edge", 1)
    assert ledger.revoke("a", 2)
    assert not ledger.revoke("a", 3)
    assert not ledger.revoke("b", 3)
    assert [m.revoked for m in ledger.members()] == [True]
    assert [e.event.action for e in ledger.audit_entries()] == ["enrol", "revoke"]


def test_what_is_taken_is_a_conflict_and_leaves_nothing(ledger: Ledger) -> None:
    with_round(ledger)
    before = ledger.audit_entries()
    with pytest.raises(ConflictError, match="expert 'sentiment' exists already"):
        ledger.create(EXPERT, version(0))
    with pytest.raises(ConflictError, match="has a version 0 already"):
        ledger.append(version(0))
    with pytest.raises(ConflictError, match="round 1 of run 'run-1' exists already"):
        ledger.open_round(OPEN)
    assert ledger.audit_entries() == before


def test_a_client_has_one_update_in_a_round(ledger: Ledger) -> None:
    a, b = with_round(ledger)
    ledger.accept(submission(a))
    with pytest.raises(BusyError, match="submit again for its receipt"):
        ledger.accept(submission(a))
    with pytest.raises(DuplicateError, match="another update for round 1"):
        ledger.accept(submission(a, "another", 2))
    ledger.accept(submission(b, "of b"))
    assert len(ledger.submissions("sentiment", "run-1", 1)) == 2
    assert len(ledger.audit_entries()) == 6


def test_a_closed_round_takes_nothing_more(open_ledger: OpenOne) -> None:
    ledger, other = open_ledger(), open_ledger()
    a, _ = with_round(ledger)
    other.close_round(replace(CLOSED, version=0), None, ())
    with pytest.raises(RoundClosedError, match="closed while the update arrived"):
        ledger.accept(submission(a))
    with pytest.raises(BusyError, match="closed just now"):
        ledger.close_round(CLOSED, version(1), ())
    assert ledger.head("sentiment") == 0
    assert ledger.submissions("sentiment", "run-1", 1) == []


def test_a_merge_that_missed_an_accepted_update_is_not_published(open_ledger: OpenOne) -> None:
    ledger, other = open_ledger(), open_ledger()
    a, b = with_round(ledger)
    ledger.accept(submission(a))
    other.accept(submission(b, "of b"))
    before = ledger.audit_entries()
    with pytest.raises(BusyError, match="arrived while it was merged"):
        ledger.close_round(CLOSED, version(1), [digest("update")])
    assert ledger.rounds("sentiment") == [OPEN]
    assert ledger.head("sentiment") == 0
    assert ledger.audit_entries() == before
    ledger.close_round(CLOSED, version(1), [digest("update"), digest("of b")])
    assert {s.merged_in for s in ledger.submissions("sentiment", "run-1", 1)} == {1}


def test_two_processes_cannot_publish_one_number(open_ledger: OpenOne) -> None:
    ledger, other = open_ledger(), open_ledger()
    with_round(ledger)
    other.append(version(1))
    with pytest.raises(ConflictError, match="has a version 1 already"):
        ledger.close_round(CLOSED, version(1), ())
    assert ledger.rounds("sentiment") == [OPEN]


def test_a_round_closes_once_however_many_processes_try(open_ledger: OpenOne) -> None:
    ledgers = [open_ledger() for _ in range(4)]
    a, _ = with_round(ledgers[0])
    ledgers[0].accept(submission(a))

    def close(ledger: Ledger) -> str:
        try:
            ledger.close_round(CLOSED, version(1), [digest("update")])
        except (BusyError, ConflictError) as error:
            return error.code
        return "closed"

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(close, ledgers)) == ["busy", "busy", "busy", "closed"]
    assert [e.event.action for e in ledgers[1].audit_entries()].count("close round") == 1


def test_many_processes_write_one_chain(open_ledger: OpenOne) -> None:
    ledgers = [open_ledger() for _ in range(4)]
    with_round(ledgers[0])

    def write(number: int) -> None:
        ledger = ledgers[number % 4]
        ledger.enrol(f"member {number}", new_key().public, "edge", number)
        with pytest.raises(ConflictError):
            ledger.open_round(OPEN)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    entries = ledgers[0].audit_entries()
    assert [entry.number for entry in entries] == list(range(1, 29))
    check(entries)


def test_a_metric_is_recorded_once(ledger: Ledger) -> None:
    ledger.record_quality(QUALITY)
    ledger.record_quality(replace(QUALITY, value=0.75))
    assert ledger.quality("sentiment") == [QUALITY]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_what_postgresql_cannot_hold_is_refused_in_one_line(ledger: Ledger) -> None:
    for name in ["x" * 200, "nul\x00"]:
        with pytest.raises(LimitError, match="the ledger cannot hold this") as caught:
            ledger.enrol(name, new_key().public, "edge", 1)
        assert "\n" not in str(caught.value)
