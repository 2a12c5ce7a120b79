"""Keys as bytes: PEM both ways, names, and files that others may read are refused."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from compeft_core.errors import InputError
from compeft_proto.errors import ForbiddenError
from compeft_proto.keys import PublicKey, new_key, public_key_from_pem, signing_key_from_pem


def test_a_key_survives_its_pem() -> None:
    key = new_key()
    assert signing_key_from_pem(key.to_pem(), "k", 0o100600).public == key.public
    assert public_key_from_pem(key.public.to_pem(), "k") == key.public


def test_a_keyid_is_half_of_the_digest_of_the_public_bytes() -> None:
    assert PublicKey(bytes(32)).keyid == "66687aadf862bd776c8fc18b8e9f8e20"


@pytest.mark.parametrize("mode", [0o100644, 0o100640, 0o100602])
def test_a_private_key_that_others_may_touch_is_refused(mode: int) -> None:
    with pytest.raises(ForbiddenError, match=r"chmod 600 edge\.key"):
        signing_key_from_pem(new_key().to_pem(), "edge.key", mode)


def test_what_is_no_key_is_named() -> None:
    with pytest.raises(InputError, match=r"edge\.key does not hold a private key"):
        signing_key_from_pem(b"hello", "edge.key", 0o100600)
    with pytest.raises(InputError, match=r"edge\.pub does not hold a public key"):
        public_key_from_pem(b"hello", "edge.pub")


def test_a_key_of_another_kind_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(InputError, match="expected Ed25519"):
        signing_key_from_pem(pem, "edge.key", 0o100600)
    with pytest.raises(InputError, match="expected Ed25519"):
        public_key_from_pem(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "edge.pub")


def test_a_public_key_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match="31 bytes"):
        PublicKey(bytes(31))
