"""The policy over real gRPC: who gets what of an expert, and what the audit log says of it."""

import pytest

from compeft_core.errors import CompeftError
from compeft_proto.clock import now_ms
from compeft_proto.errors import ForbiddenError, UnknownExpertError
from compeft_server.admin import policy_admin
from compeft_server.domain.policy import ACTIONS, Action
from compeft_server.flower.conductor import Conductor, ConductorConfig
from compeft_server.ledger.audit import check
from tests.rounds.conftest import genesis
from tests.server.policy.conftest import EXPERT, World, grow, synced_by, trained


@pytest.fixture
def strict(world: World) -> World:
    """The world without the usual grants: two versions, and nobody but the conductor may anything."""
    grow(world, 1)
    for role in ("edge", "reader"):
        policy_admin.rule(world.ledger, "clear", "*", f"role:{role}", ACTIONS, now_ms())
    return world


def allow(world: World, who: str, *actions: Action, **bounds: object) -> None:
    policy_admin.rule(world.ledger, "allow", EXPERT, who, actions, now_ms(), policy_admin.Bounds(**bounds))  # type: ignore[arg-type]


def audited(world: World, action: str) -> list[str]:
    entries = world.ledger.audit_entries()
    check(entries)
    return [e.event.detail for e in entries if e.event.action == action]


def test_an_enrolled_member_without_a_grant_gets_nothing(strict: World) -> None:
    client = strict.edge("edge")
    with pytest.raises(ForbiddenError, match="'edge', role edge, may not fetch sentiment: no rule allows it"):
        client.sync(EXPERT)
    assert '"code":"forbidden"' in audited(strict, "refuse")[-1]
    assert not list((strict.folder / "state-edge" / EXPERT).glob("state.json"))


def test_a_member_that_may_only_fetch_may_not_submit(strict: World) -> None:
    client = strict.edge("edge")
    allow(strict, "edge", "fetch")
    task = strict.open_round(2)
    synced_by(client, task)
    before = strict.everything()
    with pytest.raises(ForbiddenError, match="may not publish sentiment: no rule allows it"):
        client.submit(task, trained(1))
    assert strict.everything() == before
    allow(strict, "role:edge", "publish")
    assert client.resume(EXPERT) is not None


def test_an_allowance_that_ran_out_is_over(strict: World) -> None:
    client = strict.edge("edge")
    allow(strict, "edge", "fetch", until_ms=now_ms() + 60_000)
    assert client.sync(EXPERT).version == 1
    strict.offset_ms[0] = 61_000
    with pytest.raises(ForbiddenError, match="the allowance is over"):
        client.sync(EXPERT)


def test_an_allowance_from_a_version_on_is_not_for_older_ones(strict: World) -> None:
    client = strict.edge("edge")
    allow(strict, "edge", "fetch", from_version=1)
    with pytest.raises(ForbiddenError, match="version 0 is too old"):
        client.sync(EXPERT, 0)
    assert client.sync(EXPERT).version == 1


def test_a_reader_of_a_channel_gets_what_it_points_at_or_did(strict: World) -> None:
    client = strict.edge("edge")
    allow(strict, "edge", "fetch", channel="stable")
    policy_admin.promote(strict.ledger, EXPERT, 0, "stable", now_ms())
    with pytest.raises(ForbiddenError, match="version 1 is not of channel stable"):
        client.sync(EXPERT)
    with pytest.raises(ForbiddenError, match="version 1 is not of channel stable"):
        client.sync(EXPERT, channel="canary")
    assert client.sync(EXPERT, channel="stable").version == 0
    policy_admin.promote(strict.ledger, EXPERT, 1, "stable", now_ms())
    assert client.sync(EXPERT, 0).version == 0, "it did point there"
    assert client.sync(EXPERT, channel="stable").version == 1


def test_a_denial_by_name_outweighs_what_the_role_is_allowed(strict: World) -> None:
    client, other = strict.edge("edge"), strict.edge("other")
    allow(strict, "role:edge", *ACTIONS)
    policy_admin.rule(strict.ledger, "deny", "*", "edge", ACTIONS, now_ms())
    with pytest.raises(ForbiddenError, match=r"a rule denies it \(rule \d+: deny \* edge fetch\)"):
        client.sync(EXPERT)
    assert other.sync(EXPERT).version == 1
    policy_admin.rule(strict.ledger, "clear", "*", "edge", ACTIONS, now_ms())
    assert client.sync(EXPERT).version == 1


def test_another_conductor_may_not_run_rounds_of_an_expert_that_is_not_its_own(strict: World) -> None:
    other = Conductor(ConductorConfig(strict.address, strict.enrol("rival", "conductor"), strict.aggregator.public))
    before = strict.everything()
    with pytest.raises(ForbiddenError, match="'rival', role conductor, may not publish sentiment"):
        other.open_round(EXPERT, "its-run", 1, 60.0)
    assert strict.everything() == before
    assert "rival" in audited(strict, "refuse")[-1]
    other.publish(genesis(expert="its-own"))
    assert other.open_round("its-own", "its-run", 1, 60.0).base_version == 0


def test_a_conductor_that_is_denied_by_name_publishes_no_new_expert(strict: World) -> None:
    rival = Conductor(ConductorConfig(strict.address, strict.enrol("rival", "conductor"), strict.aggregator.public))
    policy_admin.rule(strict.ledger, "deny", "*", "rival", ["publish"], now_ms())
    with pytest.raises(ForbiddenError, match="may not publish its-own: a rule denies it"):
        rival.publish(genesis(expert="its-own"))
    assert strict.ledger.expert("its-own") is None


def test_a_retired_expert_is_for_its_owner_and_comes_back_unharmed(world: World) -> None:
    grow(world, 1)
    task = world.open_round(2)
    client = world.edge("edge")
    synced_by(client, task)
    policy_admin.retire(world.ledger, EXPERT, None, now_ms())
    for attempt in (lambda: client.sync(EXPERT), lambda: client.submit(task, trained(1))):
        with pytest.raises(ForbiddenError, match="it is retired"):
            attempt()
    owner = world.edge("owner", world.conductor_key)
    assert owner.sync(EXPERT).version == 1
    policy_admin.retire(world.ledger, EXPERT, None, now_ms(), undo=True)
    assert client.resume(EXPERT) is not None
    assert world.close_round(2).version == 2
    assert (len(audited(world, "retire")), len(audited(world, "unretire"))) == (1, 1)


def test_a_retired_version_is_not_fetched_and_not_promoted_but_later_ones_stay(world: World) -> None:
    grow(world, 2)
    policy_admin.retire(world.ledger, EXPERT, 1, now_ms())
    client = world.edge("edge")
    with pytest.raises(ForbiddenError, match="it is retired"):
        client.sync(EXPERT, 1)
    with pytest.raises(CompeftError, match="version 1 is retired"):
        policy_admin.promote(world.ledger, EXPERT, 1, "stable", now_ms())
    assert client.sync(EXPERT).version == 2


def test_the_audit_log_has_one_entry_a_version_that_a_key_fetched(strict: World) -> None:
    client = strict.edge("edge")
    allow(strict, "edge", "fetch")
    already = len(audited(strict, "fetch"))
    for _ in range(2):
        client.sync(EXPERT, 0, go_back=True)
        client.sync(EXPERT, 1)
    fetched = audited(strict, "fetch")[already:]
    assert len(fetched) == 2
    assert "allow sentiment edge fetch" in fetched[0]


def test_every_word_of_the_operator_is_in_the_audit_log(strict: World) -> None:
    allow(strict, "role:edge", "fetch", from_version=2, channel="stable")
    assert audited(strict, "allow")[-1] == '{"channel":"stable","from_version":2,"may":"fetch","who":"role:edge"}'


def test_an_unknown_expert_is_answered_with_those_that_the_member_may_fetch(strict: World) -> None:
    client = strict.edge("edge")
    with pytest.raises(UnknownExpertError, match="yours are: none"):
        client.sync("nothing")
    allow(strict, "edge", "fetch")
    with pytest.raises(UnknownExpertError, match="yours are: sentiment"):
        client.sync("nothing")
