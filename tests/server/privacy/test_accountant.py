"""Epsilon of schedules against dp-accounting by hand; rounds that remain; what adds up."""

import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp

from compeft_core.errors import InputError
from compeft_core.privacy.terms import ClientPrivacy
from compeft_proto.errors import PrivacySpentError
from compeft_server.domain.private_rounds import MemberRound
from compeft_server.privacy.account import check_bound, member_accounts
from compeft_server.privacy.accountant import NoisyRelease, epsilon_of, joint_multiplier, rounds_left

DELTA = 1e-5
TERMS = ClientPrivacy(clip=1.0, noise_multiplier=2.0, delta=DELTA, epsilon=8.0)


def by_hand(*events: object) -> float:
    """The smaller of dp-accounting's two bounds."""
    found = []
    for accountant in (rdp.RdpAccountant(), pld.PLDAccountant()):
        for event in events:
            accountant.compose(event)
        found.append(accountant.get_epsilon(DELTA))
    return min(found)


def gaussian(multiplier: float, sampling: float, times: int) -> object:
    event = dp_accounting.GaussianDpEvent(multiplier)
    sampled = event if sampling == 1 else dp_accounting.PoissonSampledDpEvent(sampling, event)
    return dp_accounting.SelfComposedDpEvent(sampled, times)


SCHEDULES = {
    "one round": [(1.0, 1.0, 1)],
    "fifty rounds of all": [(5.0, 1.0, 50)],
    "terms that changed": [(4.0, 1.0, 10), (2.5, 1.0, 5), (8.0, 1.0, 100)],
    "a tenth drawn in secret": [(1.1, 0.1, 100)],
    "drawn, then all": [(1.5, 0.05, 40), (6.0, 1.0, 3)],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_epsilon_of_a_schedule_is_that_of_dp_accounting_by_hand(name: str) -> None:
    schedule = SCHEDULES[name]
    found = epsilon_of([NoisyRelease(*row) for row in schedule], DELTA)
    expected = by_hand(*(gaussian(*row) for row in schedule))
    if all(row[1] == 1 for row in schedule):  # exact here; a distribution of privacy loss on a grid is an upper bound of it
        assert found == dp_accounting.get_epsilon_gaussian(math.fsum(n * z**-2 for z, _, n in schedule) ** -0.5, DELTA)
        assert expected - 2e-3 * expected <= found <= expected
    else:
        assert found == expected


def test_rounds_left_are_the_most_that_keep_the_bound() -> None:
    spent, following = [NoisyRelease(2.0, times=3)], NoisyRelease(2.0)
    left = rounds_left(spent, following, DELTA, 8.0)
    kept, beyond = (epsilon_of([*spent, NoisyRelease(2.0, times=n)], DELTA) for n in (left, left + 1))
    assert kept <= 8.0 < beyond
    assert rounds_left([NoisyRelease(0.1)], following, DELTA, 1.0) == 0


def test_nothing_released_spends_nothing_and_impossible_releases_are_refused() -> None:
    assert epsilon_of([], DELTA) == 0
    assert joint_multiplier([]) == math.inf
    with pytest.raises(InputError):
        NoisyRelease(0.0)
    with pytest.raises(InputError):
        NoisyRelease(1.0, 0.0)


def test_runs_experts_and_rollbacks_on_the_same_data_add_up() -> None:
    rounds = [
        MemberRound("berlin", expert, run, n, 2.0, 1.0) for expert, run, n in (("a", "1", 1), ("a", "2", 1), ("fork", "3", 1))
    ]
    (berlin,) = member_accounts("a", TERMS, rounds, {})
    assert berlin.epsilon == epsilon_of([NoisyRelease(2.0, times=3)], DELTA)
    assert (berlin.rounds, berlin.elsewhere) == (3, 1)


def test_local_noise_hides_any_two_contributions_and_counts_double() -> None:
    (one,) = member_accounts("a", TERMS, [MemberRound("berlin", "a", "1", 1, 2.0, 2.0)], {})
    assert one.epsilon == epsilon_of([NoisyRelease(1.0)], DELTA)


def test_a_member_with_an_update_without_noise_has_no_finite_epsilon() -> None:
    (one,) = member_accounts("a", TERMS, [], {"berlin": 1})
    assert (one.epsilon, one.rounds_left) == (math.inf, 0)
    with pytest.raises(PrivacySpentError, match="merged without noise"):
        check_bound("a", TERMS, [], {"berlin": 1}, [])


def test_a_bound_counts_the_most_exposed_member_and_rounds_under_way() -> None:
    left = rounds_left([], NoisyRelease(2.0), DELTA, 8.0)
    rounds = [
        MemberRound("paris", "a", "1", 1, 2.0, 1.0),
        *(MemberRound("berlin", "a", "1", n, 2.0, 1.0) for n in range(left - 1)),
    ]
    check_bound("a", TERMS, rounds, {}, [])
    with pytest.raises(PrivacySpentError, match="'berlin' to epsilon"):
        check_bound("a", TERMS, rounds, {}, [TERMS])
    with pytest.raises(PrivacySpentError, match="the bound is 8"):
        check_bound("a", TERMS, [*rounds, MemberRound("berlin", "fork", "9", 1, 2.0, 1.0)], {}, [])
