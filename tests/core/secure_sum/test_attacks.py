"""Attacks on a secure sum, one by one: each is refused by name."""

from dataclasses import replace

import numpy as np
import pytest

from compeft_core.errors import FormatError, SecureSumError
from compeft_core.secure_sum.messages import Agreement, Masked
from tests.core.secure_sum.world import Group, refused


def until_masked(group: Group):
    """Steps 1 to 3 of everybody but `gone`; the aggregator, adverts and boxes."""
    aggregator = group.aggregator()
    for client in group.clients.values():
        aggregator.add_advert(client.advertise())
    adverts = aggregator.all_adverts()
    for client in group.clients.values():
        aggregator.add_shared(client.share(adverts))
    return aggregator, adverts, aggregator.boxes_for()


def to_the_end(group: Group, aggregator, boxes, gone=()) -> np.ndarray:
    """Steps 3 to 5; the sum."""
    for each in group.ids:
        if each not in gone:
            aggregator.add_masked(group.clients[each].mask(group.vectors[each], boxes[each]))
    survivors = aggregator.all_survivors()
    for each in survivors:
        aggregator.add_agreement(group.clients[each].agree(survivors))
    agreements = aggregator.all_agreements()
    for each in survivors:
        aggregator.add_revealed(group.clients[each].reveal(agreements))
    return group.quantiser.total(aggregator.sum(), len(survivors))


@pytest.mark.parametrize(("count", "gone"), [(3, 0), (5, 1), (10, 3), (120, 36)])
def test_the_sum_is_exact_with_clients_gone_after_they_shared(count: int, gone: int) -> None:
    group = Group(count)
    aggregator, _, boxes = until_masked(group)
    absent = group.rng.sample(group.ids, gone)
    found = to_the_end(group, aggregator, boxes, absent)
    np.testing.assert_array_equal(found, group.expected(set(group.ids) - set(absent)))


def test_one_masked_vector_looks_uniform_whatever_it_holds() -> None:
    group = Group(5, words=4000)
    group.vectors = {each: np.zeros(4000, np.uint32) for each in group.ids}
    aggregator, _, boxes = until_masked(group)
    sent = group.clients[group.ids[0]].mask(group.vectors[group.ids[0]], boxes[group.ids[0]])
    octets = np.bincount(np.frombuffer(sent.data, np.uint8), minlength=256)
    assert octets.min() > 0.3 * octets.mean()
    assert aggregator.survivors == set()


def test_keys_that_no_member_signed_are_refused_by_clients_and_aggregator() -> None:
    group, other = Group(4), Group(4, seed=9)
    adverts = [client.advertise() for client in group.clients.values()]
    forged = replace(adverts[1], mask_key=other.clients[other.ids[1]].advertise().mask_key)
    assert refused(group.aggregator().add_advert, forged)
    with pytest.raises(SecureSumError, match="not signed by a member"):
        group.clients[group.ids[0]].share([adverts[0], forged, *adverts[2:]])


def test_members_that_the_aggregator_invents_are_refused() -> None:
    group, invented = Group(4), Group(8)
    adverts = [client.advertise() for client in group.clients.values()]
    more = [invented.clients[each].advertise() for each in invented.ids[4:]]
    with pytest.raises(SecureSumError, match="not signed by a member"):
        group.clients[group.ids[0]].share([*adverts, *more])


def test_too_few_clients_and_an_advert_twice_are_refused() -> None:
    group = Group(4)
    adverts = [client.advertise() for client in group.clients.values()]
    assert refused(group.clients[group.ids[0]].share, adverts[:2])
    assert refused(group.clients[group.ids[1]].share, [*adverts, adverts[0]])
    assert refused(group.clients[group.ids[2]].share, [a for a in adverts if a.sender != group.ids[2]])


def test_a_message_of_another_session_is_refused() -> None:
    group, before = Group(4), Group(4, session=b"\x01" * 32)
    replayed = before.clients[before.ids[0]].advertise()
    assert refused(group.aggregator().add_advert, replayed)


def test_a_second_message_of_one_client_is_refused_and_changes_nothing() -> None:
    group = Group(4)
    aggregator, _, boxes = until_masked(group)
    first = group.ids[0]
    masked = group.clients[first].mask(group.vectors[first], boxes[first])
    aggregator.add_masked(masked)
    before = aggregator.total.copy()
    for again in (masked, Masked(b"\x09" * 16, masked.data)):
        assert refused(aggregator.add_masked, again)
    np.testing.assert_array_equal(aggregator.total, before)
    with pytest.raises(SecureSumError, match="each is taken once"):
        group.clients[first].mask(group.vectors[first], boxes[first])


def test_a_box_for_somebody_else_is_refused() -> None:
    group = Group(4)
    _, _, boxes = until_masked(group)
    first, second, third = group.ids[:3]
    with pytest.raises(SecureSumError, match="not closed for this client"):
        group.clients[first].mask(group.vectors[first], boxes[first] | {third: boxes[second][third]})


def test_an_aggregator_that_asks_for_both_shares_of_one_client_gets_one() -> None:
    group = Group(6)
    aggregator, _, boxes = until_masked(group)
    for each in group.ids:
        aggregator.add_masked(group.clients[each].mask(group.vectors[each], boxes[each]))
    survivors = aggregator.all_survivors()
    client = group.clients[group.ids[0]]
    client.agree(survivors)
    with pytest.raises(SecureSumError, match="each is taken once"):
        client.agree(survivors[:-1])


def test_two_lists_of_survivors_are_refused_by_all_who_see_too_few_signatures() -> None:
    group = Group(7)
    aggregator, _, boxes = until_masked(group)
    for each in group.ids:
        aggregator.add_masked(group.clients[each].mask(group.vectors[each], boxes[each]))
    whole, victim = list(group.ids), group.ids[3]
    without = [each for each in whole if each != victim]
    shown = {each: whole if place < 3 or each == victim else without for place, each in enumerate(whole)}
    agreements = [group.clients[each].agree(shown[each]) for each in whole]
    found = [refused(group.clients[each].reveal, agreements) for each in whole]
    assert sum(found) >= len(whole) - 1 - sum(shown[each] is whole for each in whole)
    assert not (
        any(not f and shown[e] is whole for e, f in zip(whole, found, strict=True))
        and any(not f and shown[e] is without for e, f in zip(whole, found, strict=True))
    )


def test_signatures_that_do_not_hold_count_as_none() -> None:
    group = Group(5)
    aggregator, _, boxes = until_masked(group)
    for each in group.ids:
        aggregator.add_masked(group.clients[each].mask(group.vectors[each], boxes[each]))
    survivors = aggregator.all_survivors()
    agreements = [group.clients[each].agree(survivors) for each in survivors]
    with pytest.raises(SecureSumError, match="another list may have been shown"):
        group.clients[group.ids[0]].reveal([agreements[0], *(Agreement(a.sender, bytes(64)) for a in agreements[1:])])


def test_a_client_that_masks_with_other_keys_makes_the_round_fail_by_name() -> None:
    group, other = Group(5, words=64), Group(5, seed=4, words=64)
    aggregator, _, boxes = until_masked(group)
    _, _, boxes_of_other = until_masked(other)
    liar = group.ids[1]
    group.clients[liar].mask(group.vectors[liar], boxes[liar])
    sent = other.clients[liar].mask(group.vectors[liar], boxes_of_other[liar])
    for each in group.ids:
        aggregator.add_masked(sent if each == liar else group.clients[each].mask(group.vectors[each], boxes[each]))
    survivors = aggregator.all_survivors()
    for each in survivors:
        aggregator.add_agreement(group.clients[each].agree(survivors))
    agreements = aggregator.all_agreements()
    for each in survivors:
        aggregator.add_revealed(group.clients[each].reveal(agreements))
    with pytest.raises(FormatError, match="masked its vector with other keys"):
        group.quantiser.total(aggregator.sum(), len(survivors))


@pytest.mark.parametrize("liars", [1, 2])
def test_shares_that_do_not_fit_are_left_out(liars: int) -> None:
    group = Group(9)
    aggregator, _, boxes = until_masked(group)
    for each in group.ids[1:]:
        aggregator.add_masked(group.clients[each].mask(group.vectors[each], boxes[each]))
    survivors = aggregator.all_survivors()
    for each in survivors:
        aggregator.add_agreement(group.clients[each].agree(survivors))
    agreements = aggregator.all_agreements()
    for place, each in enumerate(survivors):
        revealed = group.clients[each].reveal(agreements)
        false = tuple(bytes(33) for _ in revealed.shares)
        aggregator.add_revealed(replace(revealed, shares=false) if place < liars else revealed)
    np.testing.assert_array_equal(group.quantiser.total(aggregator.sum(), 8), group.expected(group.ids[1:]))


def test_a_round_of_which_too_few_are_left_is_given_up_by_name() -> None:
    group = Group(6)
    aggregator, _, boxes = until_masked(group)
    for each in group.ids[:2]:
        aggregator.add_masked(group.clients[each].mask(group.vectors[each], boxes[each]))
    with pytest.raises(SecureSumError, match="fewer than 3"):
        aggregator.all_survivors()
