"""What travels in a secure sum, and what is signed of it. Each message has one form in bytes (docs/protocol.md, "Secure sums").

An id is 16 bytes, a session 32: SHA-256 over everything that the clients of a round must have in common.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from compeft_core.errors import FormatError
from compeft_core.secure_sum.shamir import SHARE_BYTES

ID_BYTES, KEY_BYTES, SIGNATURE_BYTES, DIGEST_BYTES, TAG_BYTES = 16, 32, 64, 32, 16
BOX_BYTES = 2 * SHARE_BYTES + TAG_BYTES
ADVERT, COMMITMENT, SURVIVORS = (b"compeft secure sum %s v1\0" % name for name in (b"advert", b"shares", b"survivors"))


@dataclass(frozen=True, slots=True)
class Advert:
    """Step 1: the public keys of a client for masks and for boxes, signed. 144 bytes."""

    sender: bytes
    mask_key: bytes
    box_key: bytes
    signature: bytes

    def signed(self, session: bytes) -> bytes:
        """What the signature is over."""
        return ADVERT + session + self.sender + self.mask_key + self.box_key

    def to_bytes(self) -> bytes:
        """As it travels."""
        return self.sender + self.mask_key + self.box_key + self.signature


@dataclass(frozen=True, slots=True)
class SharedSecrets:
    """Step 2: a box for each neighbour, in the order of their ids, with its shares of the mask key and of the own mask's seed; the
    SHA-256 of that seed; signed.
    """

    sender: bytes
    commitment: bytes
    boxes: tuple[bytes, ...]
    signature: bytes

    def signed(self, session: bytes) -> bytes:
        """What the signature is over."""
        return COMMITMENT + session + self.sender + self.commitment + hashlib.sha256(b"".join(self.boxes)).digest()

    def to_bytes(self) -> bytes:
        """As it travels."""
        return self.sender + self.commitment + self.signature + b"".join(self.boxes)


@dataclass(frozen=True, slots=True)
class Masked:
    """Step 3: the masked vector, packed (`masks.pack`)."""

    sender: bytes
    data: bytes

    def to_bytes(self) -> bytes:
        """As it travels."""
        return self.sender + self.data


@dataclass(frozen=True, slots=True)
class Agreement:
    """Step 4: a client's signature under the list of those whose masked vectors arrived."""

    sender: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """As it travels."""
        return self.sender + self.signature


@dataclass(frozen=True, slots=True)
class Revealed:
    """Step 5: of each neighbour that shared secrets, in the order of their ids, one share: of its own mask's seed if it is among the
    survivors, else of its mask key. `of` are those neighbours; it follows from the survivors and does not travel.
    """

    sender: bytes
    of: tuple[bytes, ...]
    shares: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """As it travels."""
        return self.sender + b"".join(self.shares)


def survivors_signed(session: bytes, survivors: Sequence[bytes]) -> bytes:
    """What an `Agreement` signs: the sorted ids."""
    return SURVIVORS + session + hashlib.sha256(b"".join(sorted(survivors))).digest()


def holds(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether an Ed25519 signature is that of the key."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def agreed(private: X25519PrivateKey, public: bytes, purpose: bytes) -> bytes:
    """A 32-byte key that two clients have in common: HKDF-SHA256 of their X25519 secret. Errors: FormatError for a key of low order."""
    try:
        secret = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise FormatError("a public key of a secure sum gives no secret") from error
    return HKDF(hashes.SHA256(), KEY_BYTES, None, purpose).derive(secret)


def pair_key(private: X25519PrivateKey, public: bytes, session: bytes) -> bytes:
    """The key of the mask that two clients share."""
    return agreed(private, public, b"compeft secure sum mask v1\0" + session)


def close(key: bytes, plain: bytes) -> bytes:
    """Encrypt a box. Each key closes one box, so its nonce is zero."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), plain, None)


def box_key(private: X25519PrivateKey, public: bytes, session: bytes, sender: bytes, receiver: bytes) -> bytes:
    """The key of the box from one client to another."""
    return agreed(private, public, b"compeft secure sum box v1\0" + session + sender + receiver)
