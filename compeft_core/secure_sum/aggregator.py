"""The aggregator of a secure sum: collects each step's messages, drops clients that stay silent, and ends with the sum of the survivors.

Messages come from authenticated clients (their envelopes are signed); each counts once. What a lying client can do is make the round fail
by name: a share that does not fit is told by the mask key's public half, or the seed's commitment, and left out.
"""

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from compeft_core.errors import FormatError, SecureSumError
from compeft_core.secure_sum import messages as m
from compeft_core.secure_sum.client import FEWEST
from compeft_core.secure_sum.graph import neighbours_of, threshold
from compeft_core.secure_sum.masks import Words, mask_of, unpack
from compeft_core.secure_sum.shamir import join, lagrange

TRIES = 200
"""Sets of shares that are tried where some do not fit."""


@dataclass(slots=True)
class SumAggregator:
    """The aggregator's side of one session of vectors with `count` words of `bits` bits. members: raw Ed25519 public keys by id."""

    session: bytes
    count: int
    bits: int
    members: Mapping[bytes, bytes]
    adverts: dict[bytes, m.Advert] = field(default_factory=dict)
    shared: dict[bytes, m.SharedSecrets] = field(default_factory=dict)
    total: Words = field(init=False)
    survivors: set[bytes] = field(default_factory=set)
    agreements: dict[bytes, m.Agreement] = field(default_factory=dict)
    revealed: dict[bytes, m.Revealed] = field(default_factory=dict)
    _graph: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    _factors: dict[tuple[int, ...], dict[int, int]] = field(default_factory=dict)
    _liars: set[bytes] = field(default_factory=set)
    _step: int = 1

    def __post_init__(self) -> None:
        self.total = np.zeros(self.count, np.uint32)

    def add_advert(self, advert: m.Advert) -> None:
        """Step 1. Errors: SecureSumError for a stranger, a wrong signature, a second advert or one that is late."""
        self._expect(1, advert.sender, self.members, self.adverts)
        if not m.holds(self.members[advert.sender], advert.signature, advert.signed(self.session)):
            raise SecureSumError(f"advert of {advert.sender.hex()} is not signed by it for this session")
        self.adverts[advert.sender] = advert

    def all_adverts(self) -> list[m.Advert]:
        """End of step 1: what every client gets. Errors: SecureSumError if too few advertised."""
        self._end(1, self.adverts)
        self._graph = neighbours_of(self.adverts, self.session)
        return [self.adverts[each] for each in sorted(self.adverts)]

    def add_shared(self, shared: m.SharedSecrets) -> None:
        """Step 2. Errors: SecureSumError as `add_advert`; FormatError for boxes of another number or length."""
        self._expect(2, shared.sender, self.adverts, self.shared)
        if not m.holds(self.members[shared.sender], shared.signature, shared.signed(self.session)):
            raise SecureSumError(f"shares of {shared.sender.hex()} are not signed by it for this session")
        if len(shared.boxes) != len(self._graph[shared.sender]) or any(len(box) != m.BOX_BYTES for box in shared.boxes):
            count = len(self._graph[shared.sender])
            raise FormatError(f"{len(shared.boxes)} boxes of {shared.sender.hex()}, expected {count} of {m.BOX_BYTES} bytes")
        self.shared[shared.sender] = shared

    def boxes_for(self) -> dict[bytes, dict[bytes, bytes]]:
        """End of step 2: the boxes that each client gets, by sender. Errors: SecureSumError if too few shared."""
        self._end(2, self.shared)
        return {
            each: {other: self._box(other, each) for other in self._graph[each] if other in self.shared} for each in self.shared
        }

    def _box(self, sender: bytes, receiver: bytes) -> bytes:
        return self.shared[sender].boxes[self._graph[sender].index(receiver)]

    def add_masked(self, masked: m.Masked) -> None:
        """Step 3: add a masked vector to the sum. Errors: SecureSumError as `add_advert`; FormatError."""
        self._expect(3, masked.sender, self.shared, self.survivors)
        self.total += unpack(masked.data, self.count, self.bits)
        self.survivors.add(masked.sender)

    def all_survivors(self) -> list[bytes]:
        """End of step 3: whose vectors are in the sum. Errors: SecureSumError if they are too few."""
        self._end(3, self.survivors)
        return sorted(self.survivors)

    def add_agreement(self, agreement: m.Agreement) -> None:
        """Step 4. Errors: SecureSumError as `add_advert`."""
        self._expect(4, agreement.sender, self.survivors, self.agreements)
        if not m.holds(
            self.members[agreement.sender], agreement.signature, m.survivors_signed(self.session, list(self.survivors))
        ):
            raise SecureSumError(f"agreement of {agreement.sender.hex()} is about other survivors")
        self.agreements[agreement.sender] = agreement

    def all_agreements(self) -> list[m.Agreement]:
        """End of step 4: what every survivor gets."""
        self._end(4, self.agreements)
        return [self.agreements[each] for each in sorted(self.agreements)]

    def add_revealed(self, revealed: m.Revealed) -> None:
        """Step 5. Errors: SecureSumError as `add_advert`; FormatError for another number of shares."""
        self._expect(5, revealed.sender, self.survivors, self.revealed)
        of = tuple(each for each in self._graph[revealed.sender] if each in self.shared)
        if revealed.of != of or len(revealed.shares) != len(of):
            raise FormatError(f"{len(revealed.shares)} shares of {revealed.sender.hex()}, expected {len(of)}")
        self.revealed[revealed.sender] = revealed

    def sum(self) -> Words:
        """End of step 5: the sum of the survivors' vectors modulo 2^32, of which `bits` bits count. Errors: SecureSumError if a secret
        cannot be put together.
        """
        self._end(5, self.revealed)
        held: dict[bytes, dict[bytes, bytes]] = {each: {} for each in self.shared}
        for revealed in self.revealed.values():
            for of, share in zip(revealed.of, revealed.shares, strict=True):
                held[of][revealed.sender] = share
        total = self.total.copy()
        for each in sorted(self.shared):
            secret = self._secret(each, held[each])
            if each in self.survivors:
                total -= mask_of(secret, self.count)
            else:
                self._unpair(total, each, X25519PrivateKey.from_private_bytes(secret))
        return total

    def _unpair(self, total: Words, gone: bytes, private: X25519PrivateKey) -> None:
        """Take out of `total` the masks that survivors share with a client whose vector never came."""
        for other in self._graph[gone]:
            if other in self.survivors:
                pair = mask_of(m.pair_key(private, self.adverts[other].mask_key, self.session), self.count)
                if other < gone:
                    total -= pair
                else:
                    total += pair

    def _secret(self, of: bytes, shares: Mapping[bytes, bytes]) -> bytes:
        """A client's seed or mask key from its neighbours' shares, those that do not fit left out; who sent one is not asked again."""
        near = self._graph[of]
        by_place = {place: shares[other] for place, other in enumerate(near, 1) if other in shares and other not in self._liars}
        needed = threshold(len(near))
        for chosen in _choices(sorted(by_place), needed):
            found = join({place: by_place[place] for place in chosen}, self._lagrange(chosen))
            if found is not None and self._fits(of, found):
                self._note_liars(near, by_place, chosen, found)
                return found
        raise SecureSumError(f"{len(by_place)} shares of {of.hex()}, {needed} that fit are needed: the round is given up")

    def _note_liars(self, near: Sequence[bytes], by_place: Mapping[int, bytes], chosen: tuple[int, ...], secret: bytes) -> None:
        """Where the first choice did not fit: whose shares do not agree with the secret that was found."""
        if chosen == tuple(sorted(by_place)[: len(chosen)]):
            return
        for place in set(by_place) - set(chosen):
            tried = (*chosen[1:], place)
            if join({each: by_place[each] for each in tried}) != secret:
                self._liars.add(near[place - 1])

    def _lagrange(self, places: tuple[int, ...]) -> dict[int, int]:
        if places not in self._factors:
            self._factors[places] = lagrange(places)
        return self._factors[places]

    def _fits(self, of: bytes, secret: bytes) -> bool:
        if of in self.survivors:
            return hashlib.sha256(secret).digest() == self.shared[of].commitment
        return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw() == self.adverts[of].mask_key

    def _expect(self, step: int, sender: bytes, allowed: Container[bytes], known: Container[bytes]) -> None:
        if self._step != step:
            raise SecureSumError(f"a message of step {step} from {sender.hex()} in step {self._step}")
        if sender not in allowed:
            raise SecureSumError(f"a message of step {step} from {sender.hex()}, which takes no part in it")
        if sender in known:
            raise SecureSumError(f"a second message of step {step} from {sender.hex()}")

    def _end(self, step: int, present: Sequence[bytes] | Mapping[bytes, object] | set[bytes]) -> None:
        if self._step != step:
            raise SecureSumError(f"step {step} ends in step {self._step}")
        if len(present) < FEWEST:
            raise SecureSumError(f"{len(present)} clients are left in step {step}: fewer than {FEWEST}, the round is given up")
        self._step = step + 1


def _choices(places: Sequence[int], needed: int) -> Iterator[tuple[int, ...]]:
    """Sets of `needed` places: the first ones, then others in an order that is always the same; none if there are too few."""
    if len(places) < needed:
        return
    yield tuple(places[:needed])
    order = Random(needed)  # noqa: S311  # the order in which shares are tried is public
    for _ in range(TRIES - 1):
        yield tuple(sorted(order.sample(places, needed)))
