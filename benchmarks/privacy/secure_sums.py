"""Bytes up and the aggregator's processor time of one secure sum, beside Flower's own SecAgg+ client, byte by byte of what it returns."""

import importlib
import random
import time
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.common import ndarrays_to_parameters

from compeft_core.secure_sum.aggregator import SumAggregator
from compeft_core.secure_sum.client import Identity, SumClient
from compeft_core.secure_sum.quantise import Quantiser, shared_support

SHARING = 3
"""Most clients of Flower's that all share their secrets here; of more only one does."""


@dataclass(frozen=True, slots=True)
class SumFigures:
    """One round. bytes_up: of a client that stays to the end; seconds of processor time of the aggregator, and of one client."""

    clients: int
    gone: int
    support: int
    word_bits: int
    bytes_up: int
    aggregator_s: float
    client_s: float
    exact: bool


def measured_sum(clients: int, gone: int, size: int, density: float, value_bits: int, seed: int = 0) -> SumFigures:
    """A round of vectors of `size` values on a support of `density`, in which `gone` clients leave after they shared their secrets."""
    rng, spent = random.Random(seed), [0.0, 0.0]  # the same round each time
    count = int(density * size)
    support = shared_support(np.arange(count // 2, dtype=np.uint32), size, count, bytes(32))
    quantiser = Quantiser(1.0, value_bits, clients)
    ids = [n.to_bytes(16, "big") for n in range(clients)]
    signers = {each: Ed25519PrivateKey.from_private_bytes(rng.randbytes(32)) for each in ids}
    members = {each: key.public_key().public_bytes_raw() for each, key in signers.items()}
    sides = {
        each: SumClient(Identity(each, signers[each].sign, members), bytes(32), quantiser.bits, rng.randbytes) for each in ids
    }
    values = np.random.default_rng(seed).normal(0, 0.2, (clients, support.size)).astype(np.float32)
    words = {each: quantiser.words(v, rng.randbytes(32)) for each, v in zip(ids, values, strict=True)}
    aggregator, last, sent = SumAggregator(bytes(32), support.size, quantiser.bits, members), ids[-1], 0

    def timed(place, action, *arguments):
        begun = time.process_time()
        result = action(*arguments)
        spent[place] += time.process_time() - begun
        return result

    def step(who, make, take) -> None:
        nonlocal sent
        for each in who:
            message = timed(1, make, each)
            sent += len(message.to_bytes()) if each == last else 0
            timed(0, take, message)

    step(ids, lambda each: sides[each].advertise(), aggregator.add_advert)
    adverts = timed(0, aggregator.all_adverts)
    step(ids, lambda each: sides[each].share(adverts), aggregator.add_shared)
    boxes = timed(0, aggregator.boxes_for)
    step(ids[gone:], lambda each: sides[each].mask(words[each], boxes[each]), aggregator.add_masked)
    survivors = timed(0, aggregator.all_survivors)
    step(ids[gone:], lambda each: sides[each].agree(survivors), aggregator.add_agreement)
    agreements = timed(0, aggregator.all_agreements)
    step(ids[gone:], lambda each: sides[each].reveal(agreements), aggregator.add_revealed)
    total = timed(0, lambda: quantiser.total(aggregator.sum(), len(survivors)))
    expected = sum(words[each].view(np.int32).astype(np.int64) for each in survivors)
    exact = bool(np.array_equal(total, expected))
    return SumFigures(clients, gone, support.size, quantiser.bits, sent, spent[0], spent[1] / clients, exact)


def flower_bytes_up(clients: int, size: int) -> int:
    """Bytes that a client of Flower's SecAgg+ sends in one round: what its own functions return in each stage, all
    `clients` neighbours of each other. The masked vector is made among three clients: its bytes do not depend on how many masks are in it.
    """
    return sum(_flower_round(clients, 1)) + _flower_round(SHARING, size)[2]


def _flower_round(clients: int, size: int) -> list[int]:
    """Bytes of the four stages of one client."""
    flower = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")  # its package names a function so

    states = {nid: flower.SecAggPlusState() for nid in range(1, clients + 1)}
    setup = {"sample_num": clients, "share_num": clients, "threshold": clients // 2 + 1}
    setup |= {"clipping_range": 8.0, "target_range": 2**22, "mod_range": 2**32, "max_weight": 1000.0}
    keys, sent = {}, []
    for nid, state in states.items():
        state.nid = nid
        made = flower._setup(state, {getattr(flower.Key, name): value for name, value in _named(setup).items()})
        keys[str(nid)] = [made[flower.Key.PUBLIC_KEY_1], made[flower.Key.PUBLIC_KEY_2]]
        sent += [_size(made)] if nid == 1 else []
    first = states[1]
    sent.append(_size(flower._share_keys(first, dict(keys))))
    boxes = []
    for nid in range(2, clients + 1) if clients <= SHARING else ():
        made = flower._share_keys(states[nid], dict(keys))
        boxes.append(made[flower.Key.CIPHERTEXT_LIST][made[flower.Key.DESTINATION_LIST].index(1)])
    received = {flower.Key.CIPHERTEXT_LIST: boxes, flower.Key.SOURCE_LIST: list(range(2, len(boxes) + 2))}
    if boxes:
        vector = np.random.default_rng(0).normal(0, 0.01, size).astype(np.float32)
        sent.append(_size(flower._collect_masked_vectors(first, received, 100, ndarrays_to_parameters([vector]))))
    else:  # the shares that others would have sent are as long as its own
        first.rd_seed_share_dict = dict.fromkeys(states, first.rd_seed_share_dict[1])
        sent.append(0)
    active = {flower.Key.ACTIVE_NODE_ID_LIST: list(states), flower.Key.DEAD_NODE_ID_LIST: []}
    sent.append(_size(flower._unmask(first, active)))
    return sent


def _named(setup: dict[str, object]) -> dict[str, object]:
    names = {
        "sample_num": "SAMPLE_NUMBER",
        "share_num": "SHARE_NUMBER",
        "threshold": "THRESHOLD",
        "clipping_range": "CLIPPING_RANGE",
        "target_range": "TARGET_RANGE",
        "mod_range": "MOD_RANGE",
        "max_weight": "MAX_WEIGHT",
    }
    return {names[name]: value for name, value in setup.items()}


def _size(values: dict) -> int:
    """Bytes of the byte strings in a stage's answer, and 8 a number."""
    total = 0
    for value in values.values():
        for each in value if isinstance(value, list) else [value]:
            total += len(each) if isinstance(each, bytes) else 8
    return total
