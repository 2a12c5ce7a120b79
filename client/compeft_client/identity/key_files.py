"""Keys from PEM files."""

from pathlib import Path

from compeft_client.durable_files import read_file
from compeft_proto.keys import PublicKey, SigningKey, public_key_from_pem, public_keys_from_pem, signing_key_from_pem


def load_signing_key(path: Path) -> SigningKey:
    """A private key from a file. Errors: InputError if it is missing, ForbiddenError if others may read it."""
    return signing_key_from_pem(read_file(path), str(path), path.stat().st_mode)


def load_public_key(path: Path) -> PublicKey:
    """A public key from a file. Errors: InputError."""
    return public_key_from_pem(read_file(path), str(path))


def load_public_keys(path: Path) -> tuple[PublicKey, ...]:
    """One or more public keys from a file, in their order. Errors: InputError."""
    return public_keys_from_pem(read_file(path), str(path))
