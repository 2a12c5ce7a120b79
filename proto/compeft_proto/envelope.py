"""The signed envelope (DSSE v1.0.2): seal a message, open a sealed one. Verify first, parse after, enforced by the types.

Only `verify` makes a `Verified`, and only a `Verified` can be parsed; what is parsed is the very bytes whose signature was
checked. Protobuf bytes are not canonical, so nothing here ever serialises a message a second time.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError, Message

from compeft_core.errors import FormatError, LimitError
from compeft_proto.errors import PayloadTypeError, SignatureError, UnknownKeyError
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.message_bounds import check_bounds
from compeft_proto.v1 import enrolment_pb2, envelope_pb2, expert_pb2
from compeft_proto.wire_parts import check_parts

MAX_PAYLOAD_BYTES = 16 * 2**20
"""Most bytes of one manifest. Parameters never travel in a manifest: they are chunks."""
SMALL, NAMING_CHUNKS = 16 * 2**10, 4 * 2**20
"""Most bytes of a message that names no chunks, and of one that names up to 65,536; an accepted one is kept for good."""
MAX_SIGNATURES = 8
MAX_KEYID = 32
MAX_TYPE = 128
"""Most characters of a keyid, and of a payload type."""

M = TypeVar("M", bound=Message)
N = TypeVar("N", bound=Message)
Lookup = Callable[[str], PublicKey | None]
"""keyid -> the enrolled key, or None for a stranger."""


@dataclass(frozen=True, slots=True)
class PayloadType(Generic[M]):
    """The type of a payload: its media type, which is signed, and the message it parses to.

    most: bytes of the payload.   bounded: whether `message_bounds` is applied to it.
    """

    name: str
    message: type[M]
    most: int = MAX_PAYLOAD_BYTES
    bounded: bool = True


def _type(noun: str, message: type[M], most: int = MAX_PAYLOAD_BYTES, bounded: bool = True) -> PayloadType[M]:
    return PayloadType(f"application/vnd.compeft.{noun}.v1+protobuf", message, most, bounded)


GENESIS = _type("genesis", expert_pb2.Genesis)
UPDATE = _type("update", expert_pb2.UpdateManifest, NAMING_CHUNKS)
RECEIPT = _type("receipt", expert_pb2.Receipt)
VERSION = _type("version", expert_pb2.VersionManifest, bounded=False)  # the aggregator's own, of what it has checked
SYNC_REQUEST = _type("sync-request", expert_pb2.SyncRequest, SMALL)
SYNC_STATEMENT = _type("sync-statement", expert_pb2.SyncStatement)
ROUND_OPENING = _type("round-opening", expert_pb2.RoundOpening, SMALL)
ROUND_CLOSING = _type("round-closing", expert_pb2.RoundClosing, SMALL)
ROUND_STATEMENT = _type("round-statement", expert_pb2.RoundStatement)
QUALITY = _type("quality", expert_pb2.QualityReport, SMALL)
RECORDED = _type("recorded", expert_pb2.Recorded)
POOL_REPORT = _type("pool-report", expert_pb2.PoolReport, SMALL)
EXPERT = _type("expert", expert_pb2.ExpertManifest, bounded=False)  # of a file, whose reader has bounds of its own
ENROLMENT_REQUEST = _type("enrolment-request", enrolment_pb2.EnrolmentRequest, SMALL)
RENEWAL_REQUEST = _type("renewal-request", enrolment_pb2.RenewalRequest, SMALL)
GRANT = _type("grant", enrolment_pb2.Grant)
HANDOVER = _type("handover", enrolment_pb2.Handover)
PACKAGE = _type("package", expert_pb2.Package, NAMING_CHUNKS)
SNAPSHOT = _type("snapshot", expert_pb2.SnapshotManifest)


@dataclass(frozen=True, slots=True)
class Verified:
    """Bytes whose signature was checked. Made by `verify` alone."""

    payload: bytes
    payload_type: str
    keyid: str

    @property
    def digest(self) -> bytes:
        """SHA-256 of the payload: the name of what was signed."""
        return hashlib.sha256(self.payload).digest()


def seal(key: SigningKey, kind: PayloadType[M], message: M) -> envelope_pb2.Envelope:
    """Serialise `message` once and sign those bytes. Errors: LimitError above MAX_PAYLOAD_BYTES."""
    payload = message.SerializeToString()
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise LimitError(f"{kind.name} of {len(payload)} bytes, the cap is {MAX_PAYLOAD_BYTES}")
    signature = envelope_pb2.Signature(sig=key.private.sign(_pae(kind.name, payload)), keyid=key.keyid)
    return envelope_pb2.Envelope(payload=payload, payload_type=kind.name, signatures=[signature])


def seal_bytes(key: SigningKey, kind: str, payload: bytes) -> envelope_pb2.Envelope:
    """Sign bytes of a payload type that is not a message by itself. Errors: LimitError above MAX_PAYLOAD_BYTES."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise LimitError(f"{kind} of {len(payload)} bytes, the cap is {MAX_PAYLOAD_BYTES}")
    signature = envelope_pb2.Signature(sig=key.private.sign(_pae(kind, payload)), keyid=key.keyid)
    return envelope_pb2.Envelope(payload=payload, payload_type=kind, signatures=[signature])


def countersign(envelope: envelope_pb2.Envelope, key: SigningKey) -> envelope_pb2.Envelope:
    """The same envelope with one more signature, over the same bytes."""
    signature = envelope_pb2.Signature(sig=key.private.sign(_pae(envelope.payload_type, envelope.payload)), keyid=key.keyid)
    return envelope_pb2.Envelope(
        payload=envelope.payload, payload_type=envelope.payload_type, signatures=[*envelope.signatures, signature]
    )


def verify(envelope: envelope_pb2.Envelope, lookup: Lookup) -> Verified:
    """Check size and signature: steps 1 and 2 of docs/protocol.md.

    Errors: LimitError on an oversize payload; UnknownKeyError if no signature names an enrolled key; SignatureError if the one
    that does is wrong.
    """
    if len(envelope.payload) > MAX_PAYLOAD_BYTES:
        raise LimitError(f"sealed payload of {len(envelope.payload)} bytes, the cap is {MAX_PAYLOAD_BYTES}")
    if len(envelope.signatures) > MAX_SIGNATURES:
        raise LimitError(f"envelope with {len(envelope.signatures)} signatures, the cap is {MAX_SIGNATURES}")
    if len(envelope.payload_type) > MAX_TYPE:
        raise LimitError(f"payload type of {len(envelope.payload_type)} characters, the cap is {MAX_TYPE}")
    for signature in envelope.signatures:
        key = lookup(signature.keyid) if len(signature.keyid) <= MAX_KEYID and signature.keyid.isalnum() else None
        if key is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key.raw).verify(signature.sig, _pae(envelope.payload_type, envelope.payload))
        except InvalidSignature as error:
            raise SignatureError(f"signature of key {key.keyid} does not fit the {len(envelope.payload)} sealed bytes") from error
        return Verified(envelope.payload, envelope.payload_type, key.keyid)
    named = ", ".join(ascii(s.keyid[:40]) for s in envelope.signatures) or "none"
    raise UnknownKeyError(f"no enrolled key signed this envelope (signed by: {named})")


def parse(verified: Verified, kind: PayloadType[M]) -> M:
    """The message in verified bytes: steps 3 and 4. Errors: PayloadTypeError, LimitError, FormatError."""
    if verified.payload_type != kind.name:
        raise PayloadTypeError(f"sealed {verified.payload_type[:80]!a}, expected {kind.name!r}")
    if len(verified.payload) > kind.most:
        raise LimitError(f"sealed {kind.name} of {len(verified.payload)} bytes, the cap is {kind.most}")
    check_parts(verified.payload, kind.message)
    try:
        message = kind.message.FromString(verified.payload)
    except DecodeError as error:
        raise FormatError(f"sealed {kind.name} of {len(verified.payload)} bytes is not such a message") from error
    if kind.bounded:
        check_bounds(message)
    return message


def open_envelope(envelope: envelope_pb2.Envelope, lookup: Lookup, kind: PayloadType[M]) -> M:
    """`verify`, then `parse`."""
    return parse(verify(envelope, lookup), kind)


def only(key: PublicKey) -> Lookup:
    """A lookup of one key: the aggregator's, for its clients."""
    return lambda keyid: key if keyid == key.keyid else None


def any_of(*keys: PublicKey) -> Lookup:
    """A lookup of these keys: the aggregator's newest one and those before it."""
    return {key.keyid: key for key in keys}.get


def _pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is really signed."""
    name = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)
