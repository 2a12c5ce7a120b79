"""A thousand random histories: drop-outs at every step, repeated messages, lying clients, a lying aggregator. No wrong sum, and of no
honest client both the mask key and the seed can be put together from all that the aggregator and its colluding members have seen.
"""

import random
from dataclasses import replace

import numpy as np
import pytest

from compeft_core.errors import CompeftError
from compeft_core.secure_sum.graph import threshold
from compeft_core.secure_sum.messages import Masked
from tests.core.secure_sum.world import Group, refused, shares_by_owner

HISTORIES, PARTS = 1000, 10


def repeated(rng: random.Random, action, message) -> None:
    """Deliver a message, and now and then once more: the second is refused."""
    action(message)
    if rng.random() < 0.2:
        assert refused(action, message)


def delivered(rng: random.Random, group: Group, senders, step, action, drop: float) -> list[bytes]:
    """Let each sender that has not dropped out take its step; who did."""
    here = [each for each in senders if rng.random() > drop]
    for each in here:
        repeated(rng, action, step(each))
    return here


def history(seed: int) -> str:
    """Play one history; how it ended. Asserts what must hold."""
    rng = random.Random(seed)
    group = Group(rng.randint(3, 9), seed=seed)
    drop, liars = rng.choice([0.0, 0.1, 0.25]), set(rng.sample(group.ids, rng.choice([0, 0, 1])))
    colluders = set(rng.sample(group.ids, rng.choice([0, 0, 1])))
    lying_aggregator = rng.random() < 0.3
    aggregator, seen, graph = group.aggregator(), [], {}
    try:
        here = delivered(rng, group, group.ids, lambda e: group.clients[e].advertise(), aggregator.add_advert, drop)
        adverts = aggregator.all_adverts()
        graph = dict(aggregator._graph)
        here = delivered(rng, group, here, lambda e: group.clients[e].share(adverts), aggregator.add_shared, drop)
        boxes = aggregator.boxes_for()

        def masked(each: bytes) -> Masked:
            sent = group.clients[each].mask(group.vectors[each], boxes[each])
            return replace(sent, data=rng.randbytes(len(sent.data))) if each in liars and rng.random() < 0.5 else sent

        here = delivered(rng, group, here, masked, aggregator.add_masked, drop)
        survivors = aggregator.all_survivors()
        shown = dict.fromkeys(here, survivors)
        if lying_aggregator:  # some are told that a victim dropped out, the others that it did not
            victim = rng.choice(survivors)
            without = [each for each in survivors if each != victim]
            shown = {each: rng.choice([survivors, without]) for each in here} | {victim: survivors}
        agreements = []
        for each in here:
            try:
                agreements.append(group.clients[each].agree(shown[each]))
            except CompeftError:
                continue
            if shown[each] == survivors:
                repeated(rng, aggregator.add_agreement, agreements[-1])
        aggregator.all_agreements()
        failure: CompeftError | None = None
        for each in here:
            try:
                revealed = group.clients[each].reveal(agreements)
            except CompeftError as error:
                failure = error
                continue
            seen += [(each, of, of in shown[each]) for of in revealed.of]
            if each in liars:
                revealed = replace(revealed, shares=tuple(rng.randbytes(33) for _ in revealed.shares))
            if shown[each] == survivors and rng.random() > drop:
                repeated(rng, aggregator.add_revealed, revealed)
        total = group.quantiser.total(aggregator.sum(), len(survivors))
        np.testing.assert_array_equal(total, group.expected(survivors))
        return "sum" if failure is None else "sum in spite of refusals"
    except CompeftError as error:
        return error.code
    finally:
        known = shares_by_owner(group, None, aggregator.shared, seen, colluders, graph)
        for each, (of_key, of_seed) in known.items():
            needed = threshold(len(graph[each]))
            assert each in colluders or not (len(of_key) >= needed and len(of_seed) >= needed), (seed, each)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_history_leads_to_a_wrong_sum_or_to_an_unmasked_client(part: int) -> None:
    ends = [history(seed) for seed in range(part, HISTORIES, PARTS)]
    assert len(ends) == HISTORIES // PARTS
    assert ends.count("sum") > 10
    assert ends.count("secure_sum") > 5
