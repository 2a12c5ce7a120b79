"""Who may use which expert: rules in, a decision with its reason out. Pure; no I/O and no clock.

Default deny: an enrolled member without a grant gets nothing of an expert. What decides, in this order:

1. Retired: nobody but the expert's owner may do anything with it.
2. Of the rules that stand, the most specific one that speaks of the member decides, alone: expert and name, every expert and name,
   ownership, expert and role, every expert and role. An allowance that is over, of a later version or of another channel is a denial.
3. No rule: denied.

Of the rules for the same expert, member or role, and action the newest stands. A `clear` rule says nothing, as if there were none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

Action = Literal["publish", "fetch"]
ACTIONS: tuple[Action, ...] = ("publish", "fetch")
"""publish: submit updates, run rounds, push versions; fetch: get versions."""
Effect = Literal["allow", "deny", "clear"]
EVERY = "*"
ROLE = "role:"


@dataclass(frozen=True, slots=True)
class Rule:
    """What the operator said. expert: a name or `*`; who: a member's name or `role:<role>`. number: its place among all rules.

    An allowance is for versions from `from_version` on, until `until_ms` (for ever if None), and on `channel` ("" means any).
    """

    number: int
    at_ms: int
    expert: str
    who: str
    action: Action
    effect: Effect
    from_version: int = 0
    until_ms: int | None = None
    channel: str = ""


@dataclass(frozen=True, slots=True)
class Retirement:
    """The operator retired an expert, or one of its versions, or took that back."""

    at_ms: int
    expert: str
    version: int | None
    retired: bool


@dataclass(frozen=True, slots=True)
class Question:
    """May this member do this? version: the one wanted, or built on; channels: those that point at it, or did; owns: whether the
    member published the expert; retired: whether the expert, or that version, is.
    """

    expert: str
    name: str
    role: str
    action: Action
    version: int
    channels: frozenset[str]
    owns: bool
    retired: bool
    now_ms: int


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer, its reason in one line, and the rule that decided, if one did."""

    allowed: bool
    reason: str
    rule: Rule | None = None


def standing(rules: Iterable[Rule]) -> list[Rule]:
    """The rules that stand, by number: the newest for each expert, who and action, those that say nothing left out."""
    newest: dict[tuple[str, str, Action], Rule] = {}
    for rule in sorted(rules, key=lambda r: r.number):
        newest[rule.expert, rule.who, rule.action] = rule
    return sorted((r for r in newest.values() if r.effect != "clear"), key=lambda r: r.number)


def decide(question: Question, rules: Sequence[Rule]) -> Decision:
    """The answer to a question under these rules, in whatever order they come."""
    if question.retired and not question.owns:
        return Decision(False, "it is retired")
    places = {(r.expert, r.who): r for r in standing(rules) if r.action == question.action}
    for expert, who in ((question.expert, question.name), (EVERY, question.name)):
        if (expert, who) in places and not who.startswith(ROLE):
            return _by(places[expert, who], question)
    if question.owns:
        return Decision(True, f"{question.name} published it")
    for expert, who in ((question.expert, ROLE + question.role), (EVERY, ROLE + question.role)):
        if (expert, who) in places:
            return _by(places[expert, who], question)
    return Decision(False, "no rule allows it")


def retired(retirements: Iterable[Retirement]) -> frozenset[int | None]:
    """The versions of an expert that are retired, None among them if all of it is; `retirements` are its own, oldest first."""
    newest = {r.version: r.retired for r in retirements}
    return frozenset(version for version, still in newest.items() if still)


def _by(rule: Rule, question: Question) -> Decision:
    problem = _problem(rule, question)
    return Decision(not problem, f"{problem} ({describe(rule)})" if problem else describe(rule), rule)


def _problem(rule: Rule, question: Question) -> str:
    if rule.effect == "deny":
        return "a rule denies it"
    if rule.until_ms is not None and question.now_ms >= rule.until_ms:
        return "the allowance is over"
    if question.version < rule.from_version:
        return f"version {question.version} is too old"
    if rule.channel and rule.channel not in question.channels:
        return f"version {question.version} is not of channel {rule.channel}"
    return ""


def describe(rule: Rule) -> str:
    """A rule in words, as `compeft policy` would be told it."""
    words = [f"rule {rule.number}: {rule.effect} {rule.expert} {rule.who} {rule.action}"]
    words += [f"from version {rule.from_version}"] if rule.from_version else []
    words += [f"on channel {rule.channel}"] if rule.channel else []
    words += [f"until {as_time(rule.until_ms)}"] if rule.until_ms is not None else []
    return " ".join(words)


def as_time(at_ms: int) -> str:
    """Milliseconds since the Unix epoch as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
