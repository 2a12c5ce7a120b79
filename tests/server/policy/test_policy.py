"""The decision: default deny, the most specific rule decides alone, the newest of its kind stands."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from compeft_server.domain.policy import ACTIONS, Question, Retirement, Rule, decide, retired, standing

NOW = 1_000_000
ASKED = Question("sentiment", "shop-7", "edge", "fetch", 3, frozenset({"canary"}), owns=False, retired=False, now_ms=NOW)

rule_st = st.builds(
    Rule,
    number=st.integers(1, 10**6),
    at_ms=st.just(0),
    expert=st.sampled_from(["sentiment", "other", "*"]),
    who=st.sampled_from(["shop-7", "shop-8", "role:edge", "role:reader"]),
    action=st.sampled_from(ACTIONS),
    effect=st.sampled_from(["allow", "deny", "clear"]),
    from_version=st.integers(0, 5),
    until_ms=st.none() | st.integers(NOW - 2, NOW + 2),
    channel=st.sampled_from(["", "stable", "canary"]),
)
rules_st = st.lists(rule_st, max_size=12, unique_by=lambda r: r.number)
question_st = st.builds(
    Question,
    expert=st.sampled_from(["sentiment", "other"]),
    name=st.sampled_from(["shop-7", "shop-8"]),
    role=st.sampled_from(["edge", "reader"]),
    action=st.sampled_from(ACTIONS),
    version=st.integers(0, 5),
    channels=st.frozensets(st.sampled_from(["stable", "canary"])),
    owns=st.booleans(),
    retired=st.booleans(),
    now_ms=st.just(NOW),
)


def rule(expert: str = "sentiment", who: str = "shop-7", **fields: object) -> Rule:
    values: dict[str, object] = {"number": 1, "at_ms": 0, "action": "fetch", "effect": "allow"}
    return Rule(expert=expert, who=who, **{**values, **fields})  # type: ignore[arg-type]


def test_without_a_rule_nobody_gets_anything() -> None:
    assert decide(ASKED, []).reason == "no rule allows it"
    assert not decide(ASKED, []).allowed


def test_a_member_named_like_a_role_gets_nothing_of_the_roles_rules() -> None:
    asked = replace(ASKED, name="role:reader")
    assert not decide(asked, [rule(who="role:reader")]).allowed


def test_the_owner_may_unless_a_rule_names_it() -> None:
    asked = replace(ASKED, owns=True)
    assert decide(asked, []).allowed
    assert decide(asked, [rule(who="role:edge", effect="deny")]).allowed
    assert not decide(asked, [rule(expert="*", effect="deny")]).allowed


def test_an_allowance_ends_at_its_time_and_begins_at_its_version() -> None:
    assert decide(ASKED, [rule(until_ms=NOW + 1)]).allowed
    assert decide(ASKED, [rule(until_ms=NOW)]).reason.startswith("the allowance is over (rule 1: allow")
    assert decide(ASKED, [rule(from_version=3)]).allowed
    assert decide(ASKED, [rule(from_version=4)]).reason.startswith("version 3 is too old")


def test_an_allowance_on_a_channel_is_for_what_it_pointed_at() -> None:
    assert decide(ASKED, [rule(channel="canary")]).allowed
    assert decide(ASKED, [rule(channel="stable")]).reason.startswith("version 3 is not of channel stable")


def test_what_is_retired_is_for_its_owner_only() -> None:
    gone = replace(ASKED, retired=True)
    assert decide(gone, [rule()]).reason == "it is retired"
    assert decide(replace(gone, owns=True), []).allowed


def test_retiring_is_taken_back_by_the_newest_word() -> None:
    said = [Retirement(1, "e", None, True), Retirement(2, "e", 3, True), Retirement(3, "e", None, False)]
    assert retired(said[:1]) == {None}
    assert retired(said) == {3}


@given(rules_st, question_st)
def test_the_most_specific_rule_decides_whatever_the_others_say(rules: list[Rule], asked: Question) -> None:
    decision = decide(asked, rules)
    if decision.rule is None:
        return
    order = ((asked.expert, asked.name), ("*", asked.name), (asked.expert, f"role:{asked.role}"), ("*", f"role:{asked.role}"))
    at = order.index((decision.rule.expert, decision.rule.who))
    rest = [r for r in rules if (r.expert, r.who) not in order[:at] or r == decision.rule]
    more_specific = [r for r in standing(rules) if r.action == asked.action and (r.expert, r.who) in order[:at]]
    assert more_specific == []
    assert decide(asked, [r for r in rest if (r.expert, r.who) not in order[at + 1 :]]) == decision


@given(rules_st, question_st, st.randoms())
def test_the_order_in_which_rules_come_does_not_matter(rules: list[Rule], asked: Question, random: object) -> None:
    shuffled = sorted(rules, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert decide(asked, shuffled) == decide(asked, rules)


@given(rules_st, question_st)
def test_nothing_is_allowed_but_by_a_standing_allowance_or_to_the_owner(rules: list[Rule], asked: Question) -> None:
    decision = decide(asked, rules)
    if decision.allowed and not asked.owns:
        assert not asked.retired
        assert decision.rule in standing(rules)
        assert decision.rule is not None
        assert decision.rule.effect == "allow"
        assert decision.rule.from_version <= asked.version
        assert decision.rule.until_ms is None or asked.now_ms < decision.rule.until_ms
        assert not decision.rule.channel or decision.rule.channel in asked.channels


@given(rules_st, question_st)
def test_a_newer_denial_by_name_ends_whatever_was_allowed(rules: list[Rule], asked: Question) -> None:
    denial = rule(expert=asked.expert, who=asked.name, action=asked.action, effect="deny", number=10**7)
    decision = decide(asked, [*rules, denial])
    assert not decision.allowed


@given(rules_st, question_st)
def test_clearing_every_rule_leaves_the_default(rules: list[Rule], asked: Question) -> None:
    cleared = [replace(r, number=10**7 + n, effect="clear") for n, r in enumerate(rules)]
    assert standing([*rules, *cleared]) == []
    assert decide(asked, [*rules, *cleared]) == decide(asked, [])


@given(rules_st, question_st)
def test_rules_of_others_change_nothing(rules: list[Rule], asked: Question) -> None:
    mine = [
        r
        for r in rules
        if r.expert in (asked.expert, "*") and r.who in (asked.name, f"role:{asked.role}") and r.action == asked.action
    ]
    assert decide(asked, mine) == decide(asked, rules)
