"""An invitation: one line of text that an operator gives to a new member, valid once. Text to value and back, no I/O.

    cpi1_<base64url of: 8 bytes id, 32 bytes secret, 1 byte length of a fingerprint (0 or 32), it, an address in UTF-8, 4 bytes check>

The fingerprint is the SHA-256 of the authority's certificate in DER: a client trusts that authority only, so it sends the
secret to no other server. Without one the aggregator has no TLS and must be on the same machine. The check is the start of the SHA-256 of
all before it: it finds typing errors, and protects against nothing else.
"""

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field

from compeft_core.errors import InputError

PREFIX = "cpi1_"
ID_BYTES, SECRET_BYTES, FINGERPRINT_BYTES, CHECK_BYTES = 8, 32, 32, 4
MAX_TEXT = 1024


@dataclass(frozen=True, slots=True)
class Invitation:
    """A one-time invitation. address: HOST:PORT of the aggregator's enrolment, empty if the operator gave none."""

    number: bytes
    secret: bytes = field(repr=False)
    fingerprint: bytes = b""
    address: str = ""

    @property
    def secret_digest(self) -> bytes:
        """SHA-256 of the secret (256 random bits): the aggregator keeps this and not the secret."""
        return hashlib.sha256(self.secret).digest()


def split_address(address: str) -> tuple[str, int]:
    """host:port as its two parts. Errors: InputError."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise InputError(f"invalid address {address[:80]!a}: expected HOST:PORT, such as aggregator.example:8443")
    return host.strip("[]"), int(port)


def new_invitation(fingerprint: bytes, address: str) -> Invitation:
    """A fresh invitation from the system's randomness; `address` may be empty. Errors: InputError on an invalid address."""
    if address:
        split_address(address)
    return Invitation(secrets.token_bytes(ID_BYTES), secrets.token_bytes(SECRET_BYTES), fingerprint, address)


def to_text(invitation: Invitation) -> str:
    """The invitation as one line of text."""
    size = bytes([len(invitation.fingerprint)])
    body = invitation.number + invitation.secret + size + invitation.fingerprint + invitation.address.encode()
    return PREFIX + base64.urlsafe_b64encode(body + _check(body)).decode().rstrip("=")


def from_text(text: str) -> Invitation:
    """The invitation in one line. Errors: InputError, which never repeats the line: it may hold a secret."""
    text = text.strip()
    if not text.startswith(PREFIX) or len(text) > MAX_TEXT:
        raise InputError(f"invalid invitation: expected a line that starts with {PREFIX}, from `compeft clients invite`")
    body = _body(text.removeprefix(PREFIX))
    number, secret, rest = body[:ID_BYTES], body[ID_BYTES : ID_BYTES + SECRET_BYTES], body[ID_BYTES + SECRET_BYTES :]
    if not rest or rest[0] not in (0, FINGERPRINT_BYTES) or len(rest) < 1 + rest[0]:
        raise InputError("the invitation is damaged: copy the whole line")
    try:
        address = rest[1 + rest[0] :].decode()
    except UnicodeDecodeError as error:
        raise InputError("the invitation is damaged: copy the whole line") from error
    return Invitation(number, secret, rest[1 : 1 + rest[0]], address)


def _body(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as error:
        raise InputError("the invitation is damaged: copy the whole line") from error
    body, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
    if check != _check(body):
        raise InputError("the invitation is damaged: copy the whole line")
    return body


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:CHECK_BYTES]
