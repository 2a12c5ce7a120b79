"""What the members of an expert have spent: sums over all rounds on the same data, of every run, expert, fork and rollback.

Nothing is drawn in secret: version manifests name their contributors. So sampling counts as what it did, not as what it might have done:
a member spends in the rounds that it contributed to, and in no other.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from compeft_core.privacy.terms import ClientPrivacy
from compeft_proto.errors import PrivacySpentError
from compeft_server.domain.private_rounds import MemberRound, PrivateRound
from compeft_server.privacy.accountant import NoisyRelease, epsilon_of, rounds_left


@dataclass(frozen=True, slots=True)
class MemberAccount:
    """One member. epsilon: infinite if `bare` updates of it were merged without noise; `elsewhere` of its rounds were of other experts.
    rounds_left: None without a bound.
    """

    member: str
    rounds: int
    elsewhere: int
    bare: int
    epsilon: float
    rounds_left: int | None


@dataclass(frozen=True, slots=True)
class PrivateRoundRecord:
    """A private round as the account shows it: clients asked and answered, the version that it led to (None while it is open)."""

    run: str
    round: int
    where: str
    noise_multiplier: float
    clip: float
    asked: int
    answered: int
    version: int | None


@dataclass(frozen=True, slots=True)
class ExpertAccount:
    """The account of an expert at `delta`: that of its most exposed member, members by epsilon, and its private rounds."""

    expert: str
    data: str
    delta: float
    bound: float | None
    epsilon: float
    rounds_left: int | None
    members: tuple[MemberAccount, ...]
    rounds: tuple[PrivateRoundRecord, ...]


def releases_of(rounds: Collection[MemberRound]) -> list[NoisyRelease]:
    """The rounds of one member as releases, equal ones counted."""
    counted = Counter(r.noise_multiplier / r.sensitivity for r in rounds)
    return [NoisyRelease(multiplier, times=times) for multiplier, times in sorted(counted.items())]


def release_of(terms: ClientPrivacy) -> NoisyRelease:
    """One round on these terms."""
    return NoisyRelease(terms.noise_multiplier / terms.sensitivity)


def member_accounts(
    expert: str, terms: ClientPrivacy, rounds: Sequence[MemberRound], bare: Mapping[str, int]
) -> tuple[MemberAccount, ...]:
    """Each member's account, the most exposed first. rounds: of all experts on the same data; bare: merged updates without noise."""
    by_member: dict[str, list[MemberRound]] = {name: [] for name in bare}
    for each in rounds:
        by_member.setdefault(each.member, []).append(each)
    known: dict[tuple[NoisyRelease, ...], tuple[float, int | None]] = {}
    found = []
    for name, own in by_member.items():
        releases = tuple(releases_of(own))
        if releases not in known:
            left = None if terms.epsilon is None else rounds_left(releases, release_of(terms), terms.delta, terms.epsilon)
            known[releases] = epsilon_of(releases, terms.delta), left
        epsilon, left = known[releases]
        if bare.get(name):
            epsilon, left = math.inf, None if left is None else 0
        elsewhere = sum(each.expert != expert for each in own)
        found.append(MemberAccount(name, len(own), elsewhere, bare.get(name, 0), epsilon, left))
    return tuple(sorted(found, key=lambda account: (-account.epsilon, account.member)))


def check_bound(
    expert: str, terms: ClientPrivacy, rounds: Sequence[MemberRound], bare: Mapping[str, int], under_way: Sequence[ClientPrivacy]
) -> None:
    """Errors: PrivacySpentError if one more round could lead a member's epsilon beyond the bound of `terms`. under_way: terms of rounds on
    the same data that are open now; each may count for every member.
    """
    if terms.epsilon is None:
        epsilon_of([release_of(terms)], terms.delta)  # whoever keeps an account can read it: refused here without the library
        return
    exposed = [(name, count) for name, count in sorted(bare.items()) if count]
    if exposed:
        raise PrivacySpentError(
            f"{expert}: {exposed[0][1]} updates of {exposed[0][0]!r} were merged without noise, so no bound on epsilon holds for it: "
            "name other data by ClientPrivacy(data=...), or leave the bound out"
        )
    by_member: dict[str, list[MemberRound]] = {"a new member": []}
    for each in rounds:
        by_member.setdefault(each.member, []).append(each)
    coming = [release_of(each) for each in (*under_way, terms)]
    spent = {name: tuple(releases_of(own)) for name, own in by_member.items()}
    epsilons = {releases: epsilon_of([*releases, *coming], terms.delta) for releases in set(spent.values())}
    name, worst = max(((name, epsilons[releases]) for name, releases in spent.items()), key=lambda pair: pair[1])
    if worst > terms.epsilon:
        raise PrivacySpentError(
            f"{expert}: one more private round would lead {name!r} to epsilon {worst:.4g} at delta {terms.delta:g}, "
            f"the bound is {terms.epsilon:g}: the run ends here; its versions stay"
        )


def expert_account(
    expert: str,
    history: Sequence[tuple[PrivateRound, int, int | None]],
    rounds: Sequence[MemberRound],
    bare: Mapping[str, int],
) -> ExpertAccount:
    """The account of an expert on the terms of its newest private round. history: its private rounds, oldest first, at least one, each
    with the number of its updates and its version; rounds, bare: as `member_accounts`. Members are those that contributed to it.
    """
    terms = history[-1][0].privacy
    own = {each.member for each in rounds if each.expert == expert} | {name for name, count in bare.items() if count}
    mine, exposed = [each for each in rounds if each.member in own], {name: count for name, count in bare.items() if name in own}
    members = member_accounts(expert, terms, mine, exposed)
    left = [m.rounds_left for m in members if m.rounds_left is not None]
    if terms.epsilon is not None and not left:
        left = [rounds_left((), release_of(terms), terms.delta, terms.epsilon)]
    shown = [
        PrivateRoundRecord(r.run, r.round, r.privacy.where, r.privacy.noise_multiplier, r.clip, r.asked, answered, version)
        for r, answered, version in history
    ]
    return ExpertAccount(
        expert=expert,
        data=terms.data,
        delta=terms.delta,
        bound=terms.epsilon,
        epsilon=max((m.epsilon for m in members), default=0.0),
        rounds_left=min(left, default=None),
        members=members,
        rounds=tuple(shown),
    )
