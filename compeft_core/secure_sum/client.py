"""One client of a secure sum: five steps, each once and in order. It lives in memory only, so a client that restarts has dropped out.

It refuses whatever would let an aggregator unmask it: keys that their owners did not sign, fewer neighbours than the threshold, two lists
of survivors, survivors that too few neighbours signed. It reveals one share of each neighbour, never both.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from compeft_core.errors import FormatError, SecureSumError
from compeft_core.secure_sum import messages as m
from compeft_core.secure_sum.graph import neighbours_of, threshold
from compeft_core.secure_sum.masks import Words, mask_of, pack
from compeft_core.secure_sum.shamir import SHARE_BYTES, Random, split

FEWEST = 3
"""Fewest clients of a sum: of two, each could subtract its own."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client is: its id, what signs for it, and the raw Ed25519 public keys of all members by id, known beforehand."""

    id: bytes
    sign: Callable[[bytes], bytes]
    members: Mapping[bytes, bytes]


class SumClient:
    """The client's side of one session. bits: of a word; random: where secrets come from."""

    def __init__(self, identity: Identity, session: bytes, bits: int, random: Random) -> None:
        self._me, self._session, self._bits, self._random = identity, session, bits, random
        self._mask_key = X25519PrivateKey.from_private_bytes(random(m.KEY_BYTES))
        self._box_key = X25519PrivateKey.from_private_bytes(random(m.KEY_BYTES))
        self._seed = random(m.KEY_BYTES)
        self._step = 0
        self._adverts: dict[bytes, m.Advert] = {}
        self._neighbours: tuple[bytes, ...] = ()
        self._shares: dict[bytes, tuple[bytes, bytes]] = {}
        self._survivors: tuple[bytes, ...] = ()

    def advertise(self) -> m.Advert:
        """Step 1."""
        self._advance(1)
        mask, box = (key.public_key().public_bytes_raw() for key in (self._mask_key, self._box_key))
        unsigned = m.Advert(self._me.id, mask, box, b"")
        return m.Advert(self._me.id, mask, box, self._me.sign(unsigned.signed(self._session)))

    def share(self, adverts: Sequence[m.Advert]) -> m.SharedSecrets:
        """Step 2, given the adverts of all. Errors: SecureSumError if one is not signed by a member, twice there, or too few are."""
        self._advance(2)
        self._adverts = {advert.sender: advert for advert in adverts}
        if len(self._adverts) != len(adverts) or len(adverts) < FEWEST or self._me.id not in self._adverts:
            raise SecureSumError(
                f"{len(adverts)} adverts of {len(self._adverts)} clients: expected {FEWEST} or more, one each, and mine"
            )
        for advert in adverts:
            known = self._me.members.get(advert.sender, b"")
            if not m.holds(known, advert.signature, advert.signed(self._session)):
                raise SecureSumError(f"advert of {advert.sender.hex()} is not signed by a member of that id")
        self._neighbours = neighbours_of(self._adverts, self._session)[self._me.id]
        return self._shared(threshold(len(self._neighbours)))

    def _shared(self, needed: int) -> m.SharedSecrets:
        places = range(1, len(self._neighbours) + 1)
        of_key = split(self._mask_key.private_bytes_raw(), needed, places, self._random)
        of_seed = split(self._seed, needed, places, self._random)
        boxes = []
        for other, *shares in zip(self._neighbours, of_key, of_seed, strict=True):
            key = m.box_key(self._box_key, self._adverts[other].box_key, self._session, self._me.id, other)
            boxes.append(m.close(key, b"".join(shares)))
        commitment = hashlib.sha256(self._seed).digest()
        unsigned = m.SharedSecrets(self._me.id, commitment, tuple(boxes), b"")
        return m.SharedSecrets(self._me.id, commitment, tuple(boxes), self._me.sign(unsigned.signed(self._session)))

    def mask(self, words: Words, received: Mapping[bytes, bytes]) -> m.Masked:
        """Step 3: the vector with its masks. received: the box of each neighbour that shared secrets. Errors: SecureSumError if a box is
        not for this client, or too few neighbours sent one.
        """
        self._advance(3)
        for other, box in received.items():
            self._shares[other] = self._opened(other, box)
        if len(self._shares) < threshold(len(self._neighbours)):
            raise SecureSumError(f"{len(self._shares)} of {len(self._neighbours)} neighbours shared secrets: too few to go on")
        total = words + mask_of(self._seed, words.size)
        for other in self._shares:
            pair = mask_of(m.pair_key(self._mask_key, self._adverts[other].mask_key, self._session), words.size)
            total = total + pair if self._me.id < other else total - pair
        return m.Masked(self._me.id, pack(total, self._bits))

    def _opened(self, other: bytes, box: bytes) -> tuple[bytes, bytes]:
        if other not in self._neighbours:
            raise SecureSumError(f"a box of {other.hex()}, which is not a neighbour")
        key = m.box_key(self._box_key, self._adverts[other].box_key, self._session, other, self._me.id)
        try:
            plain = ChaCha20Poly1305(key).decrypt(bytes(12), box, None)
        except InvalidTag as error:
            raise SecureSumError(f"the box of {other.hex()} was not closed for this client in this session") from error
        if len(plain) != 2 * SHARE_BYTES:
            raise FormatError(f"the box of {other.hex()} holds {len(plain)} bytes, expected {2 * SHARE_BYTES}")
        return plain[:SHARE_BYTES], plain[SHARE_BYTES:]

    def agree(self, survivors: Sequence[bytes]) -> m.Agreement:
        """Step 4: sign the list of those whose masked vectors arrived. Errors: SecureSumError if this client is not among them, somebody is
        who did not advertise, or too few neighbours are.
        """
        self._advance(4)
        self._survivors = tuple(sorted(set(survivors)))
        near = sum(each in self._shares for each in self._survivors)
        if self._me.id not in self._survivors or not set(self._survivors) <= set(self._adverts):
            raise SecureSumError("the list of survivors lacks this client, or names somebody who never advertised")
        if len(self._survivors) < FEWEST or near + 1 < threshold(len(self._neighbours)):
            raise SecureSumError(f"{len(self._survivors)} survivors, {near} of them neighbours: too few to sum up")
        return m.Agreement(self._me.id, self._me.sign(m.survivors_signed(self._session, self._survivors)))

    def reveal(self, agreements: Sequence[m.Agreement]) -> m.Revealed:
        """Step 5: one share of each neighbour that shared secrets. Errors: SecureSumError unless `threshold` of the neighbours, this client
        among them, signed the same survivors.
        """
        self._advance(5)
        signed, near = m.survivors_signed(self._session, self._survivors), {*self._neighbours, self._me.id}
        valid = {a.sender for a in agreements if a.sender in near and m.holds(self._me.members[a.sender], a.signature, signed)}
        if len(valid | {self._me.id}) < threshold(len(self._neighbours)) + 1:
            raise SecureSumError(
                f"{len(valid)} neighbours signed the same survivors: too few, another list may have been shown to others"
            )
        of = tuple(sorted(self._shares))
        return m.Revealed(self._me.id, of, tuple(self._shares[each][each in self._survivors] for each in of))

    def _advance(self, step: int) -> None:
        if self._step != step - 1:
            raise SecureSumError(f"step {step} was asked for after step {self._step}: each is taken once, in order")
        self._step = step
