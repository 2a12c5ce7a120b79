"""Ed25519 keys: make, name, read and write them as bytes. The callers read and write the files and check their paths.

A key is named by its keyid: the first 16 bytes of the SHA-256 of its 32 raw public bytes, in lowercase hexadecimal.
"""

import hashlib
import stat
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from compeft_core.errors import InputError
from compeft_proto.errors import ForbiddenError

PUBLIC_BYTES = 32
PEM_END = b"-----END PUBLIC KEY-----\n"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies. `raw` is its 32 public bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != PUBLIC_BYTES:
            raise InputError(f"public key of {len(self.raw)} bytes, Ed25519 has {PUBLIC_BYTES}")

    @property
    def keyid(self) -> str:
        """32 lowercase hexadecimal digits that name this key."""
        return hashlib.sha256(self.raw).hexdigest()[:32]

    def to_pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM."""
        return Ed25519PublicKey.from_public_bytes(self.raw).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs. It never leaves the machine it was made on."""

    private: Ed25519PrivateKey

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    @property
    def keyid(self) -> str:
        """The name of the key, the same as that of its public half."""
        return self.public.keyid

    def to_pem(self) -> bytes:
        """PKCS#8 in PEM, not encrypted: the file's permissions guard it."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_key() -> SigningKey:
    """A fresh key from the system's randomness."""
    return SigningKey(Ed25519PrivateKey.generate())


def check_private(name: str, mode: int) -> None:
    """The `st_mode` of a private file or folder allows its owner only. Errors: ForbiddenError, with the command that mends it."""
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        kind, right = ("a folder of private keys", 0o700) if stat.S_ISDIR(mode) else ("a private key", 0o600)
        raise ForbiddenError(f"{name} has mode {stat.S_IMODE(mode):04o}, {kind} must be {right:04o}: chmod {right:o} {name}")


def signing_key_from_pem(pem: bytes, name: str, mode: int) -> SigningKey:
    """Read a private key from the bytes and the `st_mode` of file `name`.

    Errors: ForbiddenError if group or others may touch the file; InputError if it holds no Ed25519 private key.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{name} does not hold a private key in PEM: make one with `compeft keys new`") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{name} holds a {type(key).__name__}, expected Ed25519: make one with `compeft keys new`")
    check_private(name, mode)
    return SigningKey(key)


def public_keys_from_pem(pem: bytes, name: str) -> tuple[PublicKey, ...]:
    """Read the public keys in file `name`, one or more, in their order. Errors: InputError."""
    parts = [part + PEM_END for part in pem.split(PEM_END)[:-1]] or [pem]
    return tuple(public_key_from_pem(part.lstrip(), name) for part in parts)


def public_key_from_pem(pem: bytes, name: str) -> PublicKey:
    """Read a public key from the bytes of file `name`. Errors: InputError if it holds no Ed25519 public key."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{name} does not hold a public key in PEM: the file beside the private key, ending in .pub, does"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{name} holds a {type(key).__name__}, expected Ed25519")
    return PublicKey(key.public_bytes(Encoding.Raw, PublicFormat.Raw))
