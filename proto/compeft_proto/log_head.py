"""Signed heads of an aggregator's audit log: how many entries it has and the root over them, as a C2SP tlog-checkpoint.

    compeft/0123456789abcdef0123456789abcdef                       the origin: the keyid of the aggregator's first key
    57                                                             entries
    UOwPR8SZ2dUzhJdDxKNbt2pWrqCIQnMRjOXuUr2vZOM=                   root, base64
                                                                   (an empty line)
    — compeft/0123456789abcdef0123456789abcdef bX0v...             signature of the three lines, base64

Whoever has seen a head can tell whether a later one belongs to the same log: `check_growth`.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from compeft_core.errors import FormatError
from compeft_proto.errors import ForkedLogError, RewoundLogError, SignatureError, UnknownKeyError
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.merkle_log import HASH_BYTES, MAX_PROOF, grows_from
from compeft_proto.v1 import expert_pb2 as pb

ED25519 = b"\x01"
"""The signature type of C2SP signed-note."""
MAX_NOTE = 2048
"""Most bytes of a checkpoint."""


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A log with `size` entries whose root is `root` (32 bytes), as `origin` has signed it (64 bytes)."""

    origin: str
    size: int
    root: bytes
    signature: bytes

    @property
    def text(self) -> bytes:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()

    def note(self, key: PublicKey) -> bytes:
        """The whole checkpoint, signed by `key`."""
        signature = base64.b64encode(key_hash(self.origin, key) + self.signature).decode()
        return self.text + f"\n\N{EM DASH} {self.origin} {signature}\n".encode()


def origin_of(first: PublicKey) -> str:
    """The name of a log: that of the aggregator's first key, so it stays when the key changes."""
    return f"compeft/{first.keyid}"


def key_hash(name: str, key: PublicKey) -> bytes:
    """The four bytes that name a key in a signed note."""
    return hashlib.sha256(name.encode() + b"\n" + ED25519 + key.raw).digest()[:4]


def sign_head(key: SigningKey, origin: str, size: int, root: bytes) -> SignedHead:
    """The head, signed."""
    return SignedHead(origin, size, root, key.private.sign(SignedHead(origin, size, root, b"").text))


class HeadMemory(Protocol):
    """Remembers the newest head of an aggregator's log."""

    def known(self, keys: Sequence[PublicKey]) -> SignedHead | None:
        """The newest head that one of `keys` has signed; None before the first."""

    def keep(self, head: SignedHead, key: PublicKey) -> None:
        """Remember a head, unless a longer one is known meanwhile."""


class HeadInMemory:
    """A HeadMemory that ends with its process."""

    def __init__(self) -> None:
        self._head: SignedHead | None = None

    def known(self, keys: Sequence[PublicKey]) -> SignedHead | None:
        """The newest head."""
        return self._head

    def keep(self, head: SignedHead, key: PublicKey) -> None:
        """Remember it."""
        self._head = head


def size_known(memory: HeadMemory, keys: Sequence[PublicKey]) -> int:
    """What a request says of the newest head that is known: its entries, 0 for none."""
    known = memory.known(keys)
    return known.size if known else 0


def follow_head(memory: HeadMemory, asked: int, head: pb.LogHead, keys: Sequence[PublicKey]) -> None:
    """Check the head of an answer to a request that named `asked` entries against what is remembered, and remember it.

    Where another call was faster, and the proof starts elsewhere than what is remembered now, the next answer is checked instead.
    Errors: UnknownKeyError if none of `keys` has signed it; FormatError, RewoundLogError, ForkedLogError.
    """
    known = memory.known(keys)
    if not head.ByteSize():
        if known is not None:
            raise RewoundLogError(f"the aggregator no longer says where its audit log is; it had {known.size} entries before")
        return
    found, key = head_from_proto(head, keys)
    check_length(asked, found.size)
    if known is not None and known.size not in (asked, found.size):
        return
    check_growth(known, found, head.proof if known and known.size != found.size else ())
    if known is None or found.size > known.size:
        memory.keep(found, key)


def head_from_proto(head: pb.LogHead, keys: Iterable[PublicKey]) -> tuple[SignedHead, PublicKey]:
    """The head in an answer, and who signed it. Errors: UnknownKeyError, FormatError."""
    found = SignedHead(head.origin, head.size, head.root, head.signature)
    if (
        len(found.root) != HASH_BYTES
        or not found.origin.isprintable()
        or set(" \t+") & set(found.origin)
        or len(head.proof) > MAX_PROOF
    ):
        raise FormatError(f"head of the audit log of {head.origin[:40]!a} is malformed")
    for key in keys:
        with suppress(SignatureError):
            _verify(found, key)
            return found, key
    raise UnknownKeyError(f"no known key has signed the head of the audit log of {head.origin[:60]!a}")


def head_to_proto(head: SignedHead, proof: Iterable[bytes] = ()) -> pb.LogHead:
    """The message of a head, with the proof that it grew from one before."""
    return pb.LogHead(origin=head.origin, size=head.size, root=head.root, signature=head.signature, proof=proof)


def read_note(note: bytes, keys: Iterable[PublicKey]) -> SignedHead:
    """The head in a checkpoint that one of `keys` has signed. Errors: FormatError, SignatureError."""
    text, _, signatures = note.partition(b"\n\n")
    try:
        origin, size, root = text.decode().split("\n")
        head = SignedHead(origin, int(size), base64.b64decode(root, validate=True), b"")
        signed = [base64.b64decode(line.rpartition(" ")[2], validate=True) for line in signatures.decode().splitlines()]
    except ValueError as error:
        raise FormatError(f"checkpoint of {len(note)} bytes is not three lines and a signature") from error
    if len(note) > MAX_NOTE or str(head.size) != size or len(head.root) != HASH_BYTES:
        raise FormatError(f"checkpoint of {len(note)} bytes has another size or root than a log")
    by_hash = {key_hash(origin, key): key for key in keys}
    for signature in signed:
        if (key := by_hash.get(signature[:4])) is not None:
            found = SignedHead(head.origin, head.size, head.root, signature[4:])
            _verify(found, key)
            return found
    raise SignatureError(f"no key of this aggregator has signed the head of {origin[:60]!a} with {head.size} entries")


def check_growth(known: SignedHead | None, new: SignedHead, proof: Iterable[bytes]) -> None:
    """Whether the log of `new` begins with all that `known` had. Errors: RewoundLogError, ForkedLogError."""
    if known is None:
        return
    if new.origin != known.origin:
        raise ForkedLogError(
            f"the aggregator's audit log is now {new.origin!r}, known here is {known.origin!r}: another ledger was put in its place"
        )
    check_length(known.size, new.size)
    if not grows_from(known.size, known.root, new.size, new.root, tuple(proof)):
        raise ForkedLogError(
            f"the aggregator's audit log of {new.size} entries does not begin with the {known.size} that were signed before: "
            "it was rewritten"
        )


def check_length(known: int, size: int) -> None:
    """Whether a log of `size` entries may be the one that had `known`. Errors: RewoundLogError."""
    if size < known:
        raise RewoundLogError(
            f"the aggregator's audit log has {size} entries, it had {known} before: it was restored from an older backup, or rewound"
        )


def _verify(head: SignedHead, key: PublicKey) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(head.signature, head.text)
    except InvalidSignature as error:
        raise SignatureError(f"signature of the head of {head.origin[:60]!a} with {head.size} entries is wrong") from error
