"""Checks an operator's decisions about experts and records them in the ledger."""

from collections.abc import Collection
from dataclasses import dataclass

from compeft_core.errors import InputError
from compeft_proto.errors import UnknownExpertError
from compeft_proto.name_checks import typed_name
from compeft_server.aggregation.access import Access
from compeft_server.domain.channels import Move, channel_name, channel_of
from compeft_server.domain.policy import ACTIONS, EVERY, ROLE, Action, Decision, Effect, Retirement, Rule, as_time, retired
from compeft_server.domain.records import ROLES, Role
from compeft_server.ledger.ledger import Ledger

USUAL: dict[Role, tuple[Action, ...]] = {
    "edge": ("publish", "fetch"),
    "conductor": ("publish", "fetch"),
    "reader": ("fetch",),
}
"""What a member of a role needs to do its work with an expert."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far an allowance goes: from a version on, until a time (for ever if None), on a channel ("" means any)."""

    from_version: int = 0
    until_ms: int | None = None
    channel: str = ""


def rule(
    ledger: Ledger, effect: Effect, expert: str, who: str, actions: Collection[Action], now_ms: int, bounds: Bounds | None = None
) -> list[Rule]:
    """Record who may do what with an expert, or with every one (`*`); it need not exist yet. One rule an action.

    who: a member's name, or `role:<role>`. Errors: InputError.
    """
    limits = bounds or Bounds()
    if expert != EVERY:
        typed_name(expert, "expert")
    _check_who(ledger, who)
    if not actions:
        raise InputError(f"invalid rule for {who[:40]!a}: expected --publish, --fetch, or both")
    _check_bounds(limits, actions, now_ms)
    said = [
        Rule(0, now_ms, expert, who, action, effect, limits.from_version, limits.until_ms, limits.channel)
        for action in sorted(actions)
    ]
    return [ledger.terms.add_rule(one) for one in said]


def role_of(text: str) -> Role:
    """The role of this name. Errors: InputError."""
    known = next((role for role in ROLES if role == text), None)
    if known is None:
        raise InputError(f"role {text[:40]!a}, expected one of {', '.join(ROLES)}")
    return known


def who_of(ledger: Ledger, who: str) -> tuple[str, Role]:
    """Name and role of a member's name or of `role:<role>`, whose name is empty. Errors: InputError for an unknown one."""
    if who.startswith(ROLE):
        return "", role_of(who.removeprefix(ROLE))
    found = next((m for m in ledger.members() if m.name == who), None)
    if found is None:
        raise InputError(f"no enrolled member is named {who[:40]!a}: see `compeft clients list`")
    return found.name, found.role


def explain(access: Access, ledger: Ledger, expert: str, who: str, version: int | None) -> tuple[int, dict[Action, Decision]]:
    """What a member or role may do with a version of an expert (None: the newest): the version, and a decision for each action.

    Errors: UnknownExpertError; InputError for an unknown member or role.
    """
    check_expert(ledger, expert)
    at = ledger.head(expert) if version is None else version
    check_version(ledger, expert, at)
    name, role = who_of(ledger, who)
    if name and all(m.revoked for m in ledger.members() if m.name == name):
        return at, dict.fromkeys(ACTIONS, Decision(False, "its key is revoked"))
    return at, {action: access.decide(name, role, expert, action, at) for action in ACTIONS}


def retire(ledger: Ledger, expert: str, version: int | None, now_ms: int, undo: bool = False) -> None:
    """Retire an expert, or one version of it, or take that back. Repeating it changes nothing. Errors: UnknownExpertError."""
    if version is None:
        check_expert(ledger, expert)
    else:
        check_version(ledger, expert, version)
    if (version in retired(ledger.terms.retirements(expert))) == undo:
        ledger.terms.retire(Retirement(now_ms, expert, version, not undo))


def promote(ledger: Ledger, expert: str, version: int, channel: str, now_ms: int) -> None:
    """Make a channel point at a version, newer or older than where it points. Repeating it changes nothing.

    Errors: InputError for `canary`, which is the newest version always, another channel or a retired version; UnknownExpertError.
    """
    known = channel_name(channel)
    if known == "canary":
        raise InputError("canary is the newest version, always: to go back, append one with `compeft experts rollback`")
    check_version(ledger, expert, version)
    if version in retired(ledger.terms.retirements(expert)):
        raise InputError(f"{expert} version {version} is retired: take that back with `compeft experts retire --undo`")
    moves = ledger.terms.channel_moves(expert)
    if any(m.channel == known for m in moves) and channel_of(known, expert, moves, version).version == version:
        return
    ledger.terms.move_channel(Move(now_ms, expert, known, version))


def check_expert(ledger: Ledger, expert: str) -> None:
    """Check that the expert exists. Errors: UnknownExpertError, which names those there are."""
    if ledger.expert(expert) is None:
        raise UnknownExpertError(f"no expert {expert[:40]!a} here; there are: {', '.join(ledger.experts()) or 'none'}")


def check_version(ledger: Ledger, expert: str, version: int) -> None:
    """Check that the expert has that version. Errors: UnknownExpertError, which names what exists."""
    check_expert(ledger, expert)
    head = ledger.head(expert)
    if not 0 <= version <= head:
        raise UnknownExpertError(f"{expert} has versions 0 to {head}, not {version}")


def _check_who(ledger: Ledger, who: str) -> None:
    if who.startswith(ROLE):
        if who.removeprefix(ROLE) not in ROLES:
            raise InputError(f"role {who.removeprefix(ROLE)[:40]!a}, expected one of {', '.join(ROLES)}")
    elif who not in {m.name for m in ledger.members()} | ledger.membership.awaited():
        raise InputError(
            f"no enrolled or invited member is named {who[:40]!a}: see `compeft clients list`; for a role write role:edge"
        )


def _check_bounds(bounds: Bounds, actions: Collection[Action], now_ms: int) -> None:
    if bounds.from_version < 0:
        raise InputError(f"from version {bounds.from_version}, the first is 0")
    if bounds.until_ms is not None and bounds.until_ms <= now_ms:
        raise InputError(f"until {as_time(bounds.until_ms)}, it is {as_time(now_ms)} already")
    if bounds.channel:
        channel_name(bounds.channel)
        if "publish" in actions:
            raise InputError(
                "a channel bounds what may be fetched, publishing always goes to the newest version: give two commands"
            )
