"""Sealed boxes: messages that a relay carries between a client and its aggregator and cannot read. HPKE (RFC 9180), base mode.

A box encrypts and does not authenticate its sender, so what it holds must be signed, or named by a signed digest.
"""

from dataclasses import dataclass
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from google.protobuf.message import DecodeError, Message

from compeft_core.errors import FormatError
from compeft_proto.keys import SigningKey

SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
PURPOSE = b"compeft relay key v1"
KEY_BYTES = 32

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class RelayKey:
    """A key that opens boxes."""

    private: X25519PrivateKey

    @property
    def public(self) -> bytes:
        """The 32 bytes to which boxes are closed."""
        return self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def relay_key_of(key: SigningKey) -> RelayKey:
    """The relay key that belongs to a signing key: drawn from its seed by HKDF-SHA256, so that nothing more has to be kept."""
    seed = key.private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    drawn = HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=PURPOSE).derive(seed)
    return RelayKey(X25519PrivateKey.from_private_bytes(drawn))


def close_box(public: bytes, message: Message) -> bytes:
    """Encrypt `message` in a box that only the owner of `public` can open. Errors: FormatError if that is not an X25519 key."""
    try:
        return SUITE.encrypt(message.SerializeToString(), X25519PublicKey.from_public_bytes(public), info=_info(message))
    except ValueError as error:
        raise FormatError(f"relay key of {len(public)} bytes is not an X25519 key") from error


def open_box(key: RelayKey, kind: type[M], box: bytes) -> M:
    """The message in a box. Errors: FormatError if it is not for this key, was altered, or holds another kind."""
    try:
        return kind.FromString(SUITE.decrypt(box, key.private, info=_info(kind)))
    except (InvalidTag, DecodeError) as error:
        raise FormatError(
            f"box of {len(box)} bytes is not closed to relay key {key.public.hex()[:16]}, was altered, or holds no {kind.__name__}"
        ) from error


def _info(message: Message | type[Message]) -> bytes:
    return message.DESCRIPTOR.full_name.encode()
