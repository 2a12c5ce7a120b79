"""DSSE envelopes: what is sealed opens, nothing else does; and another implementation of DSSE agrees."""

from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from compeft_core.errors import CompeftError, FormatError, LimitError
from compeft_proto import envelope as dsse
from compeft_proto.errors import PayloadTypeError, SignatureError, UnknownKeyError
from compeft_proto.keys import new_key
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope

KEY = new_key()
TRUSTED = dsse.only(KEY.public)
RECEIPT = pb.Receipt(expert="e", round=3, update_digest=b"\x01" * 32)


def test_what_is_sealed_opens() -> None:
    assert dsse.open_envelope(dsse.seal(KEY, dsse.RECEIPT, RECEIPT), TRUSTED, dsse.RECEIPT) == RECEIPT


def test_the_signature_is_over_dsses_pre_authentication_encoding() -> None:
    sealed = dsse.seal(KEY, dsse.RECEIPT, RECEIPT)
    kind, payload = sealed.payload_type.encode(), sealed.payload
    encoded = b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])
    Ed25519PublicKey.from_public_bytes(KEY.public.raw).verify(sealed.signatures[0].sig, encoded)


def test_the_payload_type_is_signed_too() -> None:
    sealed = dsse.seal(KEY, dsse.RECEIPT, RECEIPT)
    sealed.payload_type = dsse.ROUND_STATEMENT.name
    with pytest.raises(SignatureError):
        dsse.verify(sealed, TRUSTED)


def test_a_message_of_another_type_does_not_open() -> None:
    sealed = dsse.seal(KEY, dsse.RECEIPT, RECEIPT)
    with pytest.raises(PayloadTypeError, match="receipt"):
        dsse.open_envelope(sealed, TRUSTED, dsse.ROUND_STATEMENT)


def test_a_second_signature_of_a_trusted_key_suffices() -> None:
    sealed = dsse.seal(KEY, dsse.RECEIPT, RECEIPT)
    sealed.signatures.insert(0, dsse.seal(new_key(), dsse.RECEIPT, RECEIPT).signatures[0])
    assert dsse.verify(sealed, TRUSTED).keyid == KEY.keyid


def test_an_envelope_without_a_trusted_signature_does_not_open() -> None:
    with pytest.raises(UnknownKeyError, match="none"):
        dsse.verify(Envelope(payload=b"x", payload_type="y"), TRUSTED)


def test_too_many_signatures_are_not_tried() -> None:
    sealed = dsse.seal(KEY, dsse.RECEIPT, RECEIPT)
    sealed.signatures.extend([sealed.signatures[0]] * dsse.MAX_SIGNATURES)
    with pytest.raises(LimitError, match="signatures"):
        dsse.verify(sealed, TRUSTED)


def test_a_stranger_cannot_borrow_a_keyid() -> None:
    sealed = dsse.seal(new_key(), dsse.RECEIPT, RECEIPT)
    sealed.signatures[0].keyid = KEY.keyid
    with pytest.raises(SignatureError):
        dsse.verify(sealed, TRUSTED)


@given(st.binary(max_size=200))
def test_signed_bytes_parse_or_are_malformed(junk: bytes) -> None:
    with suppress(FormatError):
        dsse.parse(dsse.Verified(junk, dsse.RECEIPT.name, KEY.keyid), dsse.RECEIPT)


@given(st.data())
def test_no_altered_byte_opens(data: st.DataObject) -> None:
    raw = bytearray(dsse.seal(KEY, dsse.RECEIPT, RECEIPT).SerializeToString())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with suppress(CompeftError, DecodeError):
        opened = dsse.open_envelope(Envelope.FromString(bytes(raw)), TRUSTED, dsse.RECEIPT)
        assert opened == RECEIPT  # an alteration outside of what is signed, such as an unknown field
