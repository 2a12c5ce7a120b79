"""Signed heads: a golden checkpoint, and what a client makes of a log that grew, shrank or is another."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from compeft_core.errors import FormatError
from compeft_proto.errors import ForkedLogError, RewoundLogError, SignatureError, UnknownKeyError
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.log_head import HeadInMemory, follow_head, head_from_proto, head_to_proto, origin_of, read_note, sign_head
from compeft_proto.merkle_log import leaf_hash, node_hash
from compeft_proto.v1 import expert_pb2 as pb

KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
ORIGIN = origin_of(KEY.public)
ROOT = bytes.fromhex("5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328")
NOTE = b"""compeft/56475aa75463474c0285df5dbf2bcab7
8
XcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=

\xe2\x80\x94 compeft/56475aa75463474c0285df5dbf2bcab7 \
8jIbpEHFXiek4upsUOgqyvJijvSJ3RmCM7RPojAWTnN1YISiwyklecitKpO39LEg/cjiKnMQJbGV+wUEfFNZb3+L/Ak=
"""
ONE, TWO = leaf_hash(b"one"), node_hash(leaf_hash(b"one"), leaf_hash(b"two"))


def head(size: int, root: bytes, proof: tuple[bytes, ...] = (), key: SigningKey = KEY, origin: str = ORIGIN) -> pb.LogHead:
    """A head in an answer."""
    return head_to_proto(sign_head(key, origin, size, root), proof)


@pytest.fixture
def seen() -> HeadInMemory:
    """A client that has seen a log of one entry."""
    memory = HeadInMemory()
    follow_head(memory, 0, head(1, ONE), (KEY.public,))
    return memory


def test_the_checkpoint_is_the_golden_one_and_reads_back() -> None:
    made = sign_head(KEY, ORIGIN, 8, ROOT)
    assert made.note(KEY.public) == NOTE
    assert read_note(NOTE, (new_key().public, KEY.public)) == made


@pytest.mark.parametrize(
    "note",
    [
        b"",
        NOTE[:-60],
        NOTE.replace(b"\n8\n", b"\n08\n"),
        NOTE.replace(b"\n8\n", b"\n-8\n"),
        NOTE.partition(b"\n\n")[0],
        NOTE + b" " * 3000,
    ],
    ids=["empty", "torn", "leading zero", "negative", "unsigned", "long"],
)
def test_a_malformed_checkpoint_is_refused(note: bytes) -> None:
    with pytest.raises((FormatError, SignatureError)):
        read_note(note, (KEY.public,))


@pytest.mark.parametrize("change", [(b"\n8\n", b"\n9\n"), (b"Xcna", b"Xcnb")], ids=["size", "root"])
def test_an_altered_checkpoint_is_refused(change: tuple[bytes, bytes]) -> None:
    with pytest.raises(SignatureError, match="signature of the head"):
        read_note(NOTE.replace(*change), (KEY.public,))


def test_a_checkpoint_of_another_key_is_refused() -> None:
    with pytest.raises(SignatureError, match="no key of this aggregator"):
        read_note(NOTE, (new_key().public,))


def test_a_log_that_grew_is_remembered(seen: HeadInMemory) -> None:
    follow_head(seen, 1, head(2, TWO, (leaf_hash(b"two"),)), (KEY.public,))
    known = seen.known(())
    assert known is not None
    assert known.size == 2


def test_a_log_that_shrank_is_told(seen: HeadInMemory) -> None:
    follow_head(seen, 1, head(2, TWO, (leaf_hash(b"two"),)), (KEY.public,))
    with pytest.raises(RewoundLogError, match="has 1 entries, it had 2 before"):
        follow_head(seen, 2, head(1, ONE), (KEY.public,))


@pytest.mark.parametrize("proof", [(), (leaf_hash(b"three"),), (leaf_hash(b"two"), leaf_hash(b"two"))])
def test_a_log_with_another_beginning_is_told(seen: HeadInMemory, proof: tuple[bytes, ...]) -> None:
    with pytest.raises(ForkedLogError, match="does not begin with the 1 that were signed before"):
        follow_head(seen, 1, head(2, TWO, proof), (KEY.public,))


def test_another_root_of_the_same_size_is_told(seen: HeadInMemory) -> None:
    with pytest.raises(ForkedLogError):
        follow_head(seen, 1, head(1, TWO), (KEY.public,))


def test_another_log_of_the_same_aggregator_is_told(seen: HeadInMemory) -> None:
    with pytest.raises(ForkedLogError, match="another ledger was put in its place"):
        follow_head(seen, 1, head(9, TWO, origin="compeft/other"), (KEY.public,))


def test_an_answer_that_is_silent_about_the_log_is_told(seen: HeadInMemory) -> None:
    with pytest.raises(RewoundLogError, match="no longer says where its audit log is"):
        follow_head(seen, 1, pb.LogHead(), (KEY.public,))


def test_a_head_that_a_stranger_signed_is_not_believed() -> None:
    with pytest.raises(UnknownKeyError):
        follow_head(HeadInMemory(), 0, head(1, ONE, key=new_key()), (KEY.public,))


@pytest.mark.parametrize("change", [{"root": b"short"}, {"origin": "two\nlines"}, {"proof": [bytes(32)] * 65}])
def test_a_malformed_head_is_refused(change: dict[str, object]) -> None:
    made = head(1, ONE)
    made.MergeFrom(pb.LogHead(**change))  # type: ignore[arg-type]  # one of its fields
    with pytest.raises(FormatError, match="malformed"):
        head_from_proto(made, (KEY.public,))
