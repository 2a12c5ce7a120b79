"""A secure sum among simulated clients: what each sends, who lies, who drops out, and all that the aggregator sees."""

import random
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from compeft_core.errors import SecureSumError
from compeft_core.secure_sum import messages as m
from compeft_core.secure_sum.aggregator import SumAggregator
from compeft_core.secure_sum.client import Identity, SumClient
from compeft_core.secure_sum.quantise import Quantiser

SESSION = bytes(range(32))
COUNT = 8


def ids_of(count: int) -> list[bytes]:
    """Ids of 16 bytes."""
    return [number.to_bytes(16, "big") for number in range(1, count + 1)]


@dataclass
class Group:
    """Members with keys from one seed, and their vectors."""

    count: int
    seed: int = 0
    session: bytes = SESSION
    words: int = COUNT
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.ids = ids_of(self.count)
        signers = {each: Ed25519PrivateKey.from_private_bytes(self.rng.randbytes(32)) for each in self.ids}
        self.members = {each: key.public_key().public_bytes_raw() for each, key in signers.items()}
        self.quantiser = Quantiser(1.0, 8, self.count)
        self.clients = {
            each: SumClient(Identity(each, key.sign, self.members), self.session, self.quantiser.bits, self.rng.randbytes)
            for each, key in signers.items()
        }
        values = np.random.default_rng(self.seed).uniform(-1, 1, (self.count, self.words)).astype(np.float32)
        self.vectors = {each: self.quantiser.words(v, self.rng.randbytes(32)) for each, v in zip(self.ids, values, strict=True)}

    def aggregator(self) -> SumAggregator:
        """An honest one."""
        return SumAggregator(self.session, self.words, self.quantiser.bits, self.members)

    def expected(self, survivors) -> np.ndarray:
        """The sum of these clients' integers."""
        return sum(self.vectors[each].view(np.int32).astype(np.int64) for each in survivors)


def refused(action, *arguments) -> bool:
    """Whether a message or a step is refused by name."""
    try:
        action(*arguments)
    except SecureSumError:
        return True
    return False


def shares_by_owner(group: Group, adverts, shared, revealed, colluders, graph) -> dict[bytes, tuple[set[int], set[int]]]:
    """Of each client, the places whose shares the aggregator and its colluding members know: of the mask key, of the seed.

    `revealed` are (sender, of, whether it is the seed's); what a colluder was sent it knows both of.
    """
    known = {each: (set(), set()) for each in shared}
    for each in shared:
        for place, other in enumerate(graph[each], 1):
            if other in colluders:
                known[each][0].add(place)
                known[each][1].add(place)
    for sender, of, is_seed in revealed:
        known[of][int(is_seed)].add(graph[of].index(sender) + 1)
    return known


__all__ = ["COUNT", "SESSION", "Group", "ids_of", "m", "refused", "shares_by_owner"]
