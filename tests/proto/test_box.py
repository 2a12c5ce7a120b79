"""Boxes: what a relay carries. Who opens them, and what does not open."""

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from compeft_core.errors import FormatError
from compeft_proto.errors import TruncatedError
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.relay_letter import RecordedSync
from compeft_proto.sealed_box import close_box, open_box, relay_key_of
from compeft_proto.v1 import exchange_pb2 as xp

REPLY = xp.SyncReply(data=b"chunk")


def test_a_relay_key_is_hkdf_of_the_seed_of_the_signing_key() -> None:
    seed = bytes(range(32))
    extracted = hmac.digest(bytes(32), seed, "sha256")
    drawn = hmac.digest(extracted, b"compeft relay key v1\x01", "sha256")
    expected = X25519PrivateKey.from_private_bytes(drawn).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    key = relay_key_of(SigningKey(Ed25519PrivateKey.from_private_bytes(seed)))
    assert key.public == expected


def test_a_box_is_48_bytes_more_and_never_the_same_twice() -> None:
    key = relay_key_of(new_key())
    boxes = [close_box(key.public, REPLY) for _ in range(2)]
    assert boxes[0] != boxes[1]
    for box in boxes:
        assert len(box) == REPLY.ByteSize() + 48
        assert open_box(key, xp.SyncReply, box) == REPLY


def test_a_box_opens_for_its_key_as_its_kind_and_whole_only() -> None:
    key, other = relay_key_of(new_key()), relay_key_of(new_key())
    box = close_box(key.public, REPLY)
    for wrong in (b"", box[:40], box[:-1], box + b"\0", bytes([box[0] ^ 1]) + box[1:], box[:-1] + bytes([box[-1] ^ 1])):
        with pytest.raises(FormatError, match="was altered"):
            open_box(key, xp.SyncReply, wrong)
    with pytest.raises(FormatError, match="not closed to relay key"):
        open_box(other, xp.SyncReply, box)
    with pytest.raises(FormatError, match="holds no SubmitRequest"):
        open_box(key, xp.SubmitRequest, box)


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(32), bytes(33)])
def test_what_is_no_key_closes_no_box(public: bytes) -> None:
    with pytest.raises(FormatError, match=f"relay key of {len(public)} bytes"):
        close_box(public, REPLY)


def test_a_call_in_a_letter_is_heard_in_order_and_gives_only_what_it_holds() -> None:
    read = RecordedSync([xp.SyncReply(listed=True), REPLY])
    for _ in range(2):
        talk = read.again()
        assert talk.receive().listed
        with pytest.raises(TruncatedError, match="ends before"):
            talk.receive()
        talk.send(xp.SyncCall(want=xp.NeededChunk(sha256=hashlib.sha256(b"chunk").digest())))
        assert talk.receive() == REPLY
    with pytest.raises(TruncatedError, match="does not hold chunk 0101"):
        read.send(xp.SyncCall(want=xp.NeededChunk(sha256=b"\x01" * 32)))
