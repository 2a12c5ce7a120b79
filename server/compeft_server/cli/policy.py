"""`compeft policy`: who may use which expert. Run on the aggregator's machine; each command calls one function and prints."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from compeft_core.errors import InputError
from compeft_proto.clock import now_ms
from compeft_server.admin import policy_admin
from compeft_server.app.opened import OpenedData, opened
from compeft_server.cli.options import AsFormat, Data
from compeft_server.domain.policy import ACTIONS, Action, Decision, Effect, Rule, as_time, describe, standing

Expert = Annotated[str, typer.Argument(help="name of the expert, or '*' for every one")]
Who = Annotated[str, typer.Argument(help="an enrolled member's name, or role:edge, role:reader, role:conductor")]
Publish = Annotated[bool, typer.Option("--publish", help="submit updates, run rounds, push versions")]
Fetch = Annotated[bool, typer.Option("--fetch", help="get versions")]

app = typer.Typer()
policy = typer.Typer(help="Who may use which expert.", no_args_is_help=True)
app.add_typer(policy, name="policy")


@policy.command("allow")
def policy_allow(
    expert: Expert,
    who: Who,
    data: Data,
    publish: Publish = False,
    fetch: Fetch = False,
    from_version: Annotated[int, typer.Option(help="the first version that this is about")] = 0,
    until: Annotated[str | None, typer.Option(help="when it ends: ISO 8601, UTC unless it says otherwise")] = None,
    channel: Annotated[str, typer.Option(help="only what this channel points at, or did: stable or canary; for --fetch")] = "",
    output_format: AsFormat = "text",
) -> None:
    """Allow something. It replaces what was said before of the same expert, member or role, and action.

    Examples: compeft policy allow sentiment role:edge --publish --fetch --data /var/lib/compeft;
    compeft policy allow sentiment shop-7 --fetch --channel stable --until 2027-01-31T12:00Z --data /var/lib/compeft
    """
    bounds = policy_admin.Bounds(from_version, _time(until), channel)
    with OpenedData(data) as there:
        said = policy_admin.rule(there.ledger, "allow", expert, who, _chosen(publish, fetch), now_ms(), bounds)
        _print_said(there, said, output_format)


@policy.command("deny")
def policy_deny(
    expert: Expert, who: Who, data: Data, publish: Publish = False, fetch: Fetch = False, output_format: AsFormat = "text"
) -> None:
    """Deny everything, or what is named. A denial that names a member outweighs what its role is allowed.

    Example: compeft policy deny sentiment shop-7 --data /var/lib/compeft
    """
    _say("deny", expert, who, data, _chosen(publish, fetch) or ACTIONS, output_format)


@policy.command("clear")
def policy_clear(
    expert: Expert, who: Who, data: Data, publish: Publish = False, fetch: Fetch = False, output_format: AsFormat = "text"
) -> None:
    """Say nothing any more of this expert and member or role: the next, more general rule decides again.

    Example: compeft policy clear sentiment shop-7 --data /var/lib/compeft
    """
    _say("clear", expert, who, data, _chosen(publish, fetch) or ACTIONS, output_format)


@policy.command("list")
def policy_list(
    data: Data,
    expert: Annotated[str | None, typer.Argument(help="only rules that speak of this expert")] = None,
    everything: Annotated[bool, typer.Option("--all", help="also the rules that newer ones replaced")] = False,
    output_format: AsFormat = "text",
) -> None:
    """List the rules that stand.

    Example: compeft policy list sentiment --data /var/lib/compeft
    """
    with opened(data) as there:
        rules = there.ledger.terms.rules(expert)
    _print_rules(rules if everything else standing(rules), output_format)


@policy.command("explain")
def policy_explain(
    expert: Annotated[str, typer.Argument(help="name of the expert")],
    who: Who,
    data: Data,
    version: Annotated[int | None, typer.Option(help="the version it is about; the newest by default")] = None,
    output_format: AsFormat = "text",
) -> None:
    """Say what a member or a role may do with an expert now, and which rule decides.

    Example: compeft policy explain sentiment shop-7 --data /var/lib/compeft
    """
    with opened(data) as there:
        at, decisions = policy_admin.explain(there.access, there.ledger, expert, who, version)
    if output_format == "json":
        typer.echo(json.dumps([_decision_json(expert, who, at, action, d) for action, d in decisions.items()]))
        return
    for action, decision in decisions.items():
        may = "may" if decision.allowed else "may not"
        typer.echo(f"{who} {may} {action} {expert} version {at}: {decision.reason}")


def _say(effect: Effect, expert: str, who: str, data: Path, actions: Sequence[Action], output_format: str) -> None:
    with opened(data) as there:
        _print_said(there, policy_admin.rule(there.ledger, effect, expert, who, actions, now_ms()), output_format)


def _chosen(publish: bool, fetch: bool) -> tuple[Action, ...]:
    chosen: tuple[tuple[Action, bool], ...] = (("publish", publish), ("fetch", fetch))
    return tuple(action for action, given in chosen if given)


def _time(text: str | None) -> int | None:
    """ISO 8601 as milliseconds since the Unix epoch; UTC where no zone is given. Errors: InputError."""
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"time {text[:40]!a}, write it like 2027-01-31T12:00Z") from error
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


def _print_said(there: OpenedData, said: Sequence[Rule], output_format: str) -> None:
    _print_rules(said, output_format)
    name = said[0].expert
    if name != "*" and there.ledger.expert(name) is None:
        typer.echo(f"no expert {name!r} has been published yet: the rule waits for it", err=True)


def _print_rules(rules: Sequence[Rule], output_format: str) -> None:
    if output_format == "json":
        typer.echo(json.dumps([_rule_json(rule) for rule in rules]))
        return
    for rule in rules:
        typer.echo(f"{as_time(rule.at_ms)}  {describe(rule)}")


def _rule_json(rule: Rule) -> dict[str, object]:
    return asdict(rule) | {"until": None if rule.until_ms is None else as_time(rule.until_ms)}


def _decision_json(expert: str, who: str, version: int, action: Action, decision: Decision) -> dict[str, object]:
    rule = _rule_json(decision.rule) if decision.rule else None
    asked = {"expert": expert, "who": who, "version": version, "action": action}
    return asked | {"allowed": decision.allowed, "reason": decision.reason, "rule": rule}
