"""Errors of the exchange, below the root in `compeft_core.errors`, and the one table that maps them to gRPC status codes.

CompeftError
├── TrustError               the signer, or the type of the message, is not acceptable
│   ├── SignatureError       the signature does not fit the bytes
│   ├── UnknownKeyError      the key is not enrolled, or revoked
│   ├── PayloadTypeError     a sealed message of another type than this call takes
│   └── ForbiddenError       the key may not do this
├── RefusedError             genuine, but against the rules: retrying does not help
│   ├── ExpiredError         issued in the future, or too long ago
│   ├── ReplayError          seen before, in a round that is over
│   ├── DuplicateError       a second, different update of one client for one round
│   ├── RoundClosedError     no such round is open
│   ├── WrongBaseError       trained on another base model or another version
│   ├── WrongAdapterError    another adapter configuration
│   ├── UnknownExpertError   no expert, or no version, of that name
│   ├── ConflictError        it exists already, and is different
│   ├── RewoundLogError      the audit log is shorter than one that was signed before
│   └── ForkedLogError       the audit log does not begin with one that was signed before
└── TransferError            bytes that did not arrive: try again
    ├── TruncatedError       the stream ended before the chunk did
    ├── ChunkMismatchError   a chunk that does not match its digest
    ├── UnreachableError     no server answers at that address
    ├── StalledError         a call sent no message for too long
    └── WaitError            a quota is used up, the bytes are valid: retry after `retry_after_ms`
        ├── BusyError        too many calls at once
        ├── ThrottledError   too many calls or bytes in this time
        └── StorageFullError no room on the aggregator's disk
"""

import grpc

from compeft_core.errors import (
    CompeftError,
    FormatError,
    InputError,
    LayoutMismatchError,
    LimitError,
    NotFiniteError,
    SecureSumError,
)


class TrustError(CompeftError):
    """The signer, or the type of the message, is not acceptable."""

    code = "untrusted"


class SignatureError(TrustError):
    """The signature does not fit the bytes."""

    code = "bad_signature"


class UnknownKeyError(TrustError):
    """The key is not enrolled, or is revoked."""

    code = "unknown_key"


class PayloadTypeError(TrustError):
    """A sealed message of another type than this call takes."""

    code = "wrong_payload_type"


class ForbiddenError(TrustError):
    """The key may not do this."""

    code = "forbidden"


class RefusedError(CompeftError):
    """Genuine, but against the rules."""

    code = "refused"


class ExpiredError(RefusedError):
    """Issued in the future, or too long ago."""

    code = "expired"


class ReplayError(RefusedError):
    """Seen before, in a round that is over."""

    code = "replay"


class DuplicateError(RefusedError):
    """A second, different update of one client for one round."""

    code = "duplicate"


class RoundClosedError(RefusedError):
    """No such round is open."""

    code = "round_closed"


class WrongBaseError(RefusedError):
    """Trained on another base model or on another version."""

    code = "wrong_base"


class WrongAdapterError(RefusedError):
    """Trained with another adapter configuration."""

    code = "wrong_adapter"


class UnknownExpertError(RefusedError):
    """No expert, or no version, of that name."""

    code = "unknown_expert"


class ConflictError(RefusedError):
    """It exists already, and is different."""

    code = "conflict"


class RewoundLogError(RefusedError):
    """The audit log is shorter than one that was signed before: a restored backup, or a rewound log."""

    code = "log_rewound"


class ForkedLogError(RefusedError):
    """The audit log does not begin with the entries of one that was signed before."""

    code = "log_forked"


class PrivacySpentError(RefusedError):
    """A private round would lead beyond its bound, or does not fit what its expert promised before."""

    code = "privacy_spent"


class TransferError(CompeftError):
    """Bytes that did not arrive."""

    code = "transfer"


class TruncatedError(TransferError):
    """The stream ended before the chunk did."""

    code = "truncated"


class ChunkMismatchError(TransferError):
    """A chunk that does not match its digest."""

    code = "chunk_mismatch"


class UnreachableError(TransferError):
    """No server answers at that address."""

    code = "unreachable"


class StalledError(TransferError):
    """A call said nothing for too long."""

    code = "stalled"


class WaitError(TransferError):
    """A quota is used up. `retry_after_ms`: milliseconds to wait before a retry; 0 if the aggregator did not say."""

    code = "wait"

    def __init__(self, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class BusyError(WaitError):
    """Too many calls at once."""

    code = "busy"


class ThrottledError(WaitError):
    """Too many calls or bytes in this time."""

    code = "throttled"


class StorageFullError(WaitError):
    """No room on the aggregator's disk, or none left of the client's share of it."""

    code = "storage_full"


STATUS: dict[type[CompeftError], grpc.StatusCode] = {
    CompeftError: grpc.StatusCode.UNKNOWN,
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFiniteError: grpc.StatusCode.INVALID_ARGUMENT,
    LayoutMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    FormatError: grpc.StatusCode.INVALID_ARGUMENT,
    SecureSumError: grpc.StatusCode.FAILED_PRECONDITION,
    LimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TrustError: grpc.StatusCode.UNAUTHENTICATED,
    SignatureError: grpc.StatusCode.UNAUTHENTICATED,
    UnknownKeyError: grpc.StatusCode.UNAUTHENTICATED,
    PayloadTypeError: grpc.StatusCode.INVALID_ARGUMENT,
    ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    RefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    ExpiredError: grpc.StatusCode.FAILED_PRECONDITION,
    ReplayError: grpc.StatusCode.ALREADY_EXISTS,
    DuplicateError: grpc.StatusCode.ALREADY_EXISTS,
    RoundClosedError: grpc.StatusCode.FAILED_PRECONDITION,
    WrongBaseError: grpc.StatusCode.FAILED_PRECONDITION,
    WrongAdapterError: grpc.StatusCode.FAILED_PRECONDITION,
    UnknownExpertError: grpc.StatusCode.NOT_FOUND,
    ConflictError: grpc.StatusCode.ALREADY_EXISTS,
    RewoundLogError: grpc.StatusCode.FAILED_PRECONDITION,
    ForkedLogError: grpc.StatusCode.FAILED_PRECONDITION,
    PrivacySpentError: grpc.StatusCode.FAILED_PRECONDITION,
    TransferError: grpc.StatusCode.ABORTED,
    TruncatedError: grpc.StatusCode.ABORTED,
    ChunkMismatchError: grpc.StatusCode.DATA_LOSS,
    WaitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    BusyError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ThrottledError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    StorageFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnreachableError: grpc.StatusCode.UNAVAILABLE,
    StalledError: grpc.StatusCode.CANCELLED,
}
"""Every class of the tree and its gRPC status. The class itself travels as `ERROR_CODE_KEY` in the trailing metadata."""

ERROR_CODE_KEY = "compeft-error-code"
REQUEST_ID_KEY = "compeft-request-id"
"""Trailing metadata of every call: what the aggregator's log lines of this call are marked with."""
RETRY_AFTER_KEY = "compeft-retry-after-ms"
NEVER_CONNECTED = "failed to connect to all addresses; last error: "
HINTS = {
    "WRONG_VERSION_NUMBER": "the server on that port does not use TLS: is it the right port?",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not one that the authority in --tls-ca, or in the site's ca.crt, vouches for now: "
    "is it another aggregator, or is a clock wrong?",
    "Failed to create security handshaker": "--tls-ca, --tls-cert and --tls-key, or ca.crt and tls.pem of the site, are not PEM files",
    "Socket closed": "it may want TLS, or another certificate: give --site, or --tls-ca, --tls-cert and --tls-key",
    "Failed parsing HTTP/2": "the server on that port is not an aggregator: is it the right port?",
}
"""Text in gRPC's details of a connection that failed -> the way out."""
BY_CODE: dict[str, type[CompeftError]] = {cls.code: cls for cls in STATUS}


def trailing_metadata(error: CompeftError) -> tuple[tuple[str, str], ...]:
    """The metadata of a refusal beside its status: the error code and, if waiting helps, after how many milliseconds to retry."""
    code = ((ERROR_CODE_KEY, error.code),)
    if isinstance(error, WaitError) and error.retry_after_ms > 0:
        return (*code, (RETRY_AFTER_KEY, str(error.retry_after_ms)))
    return code


def from_rpc(error: grpc.RpcError, peer: str) -> CompeftError:
    """The typed error behind a failed call to `peer`; UnreachableError when the call never arrived."""
    call: grpc.Call = error  # type: ignore[assignment]  # every RpcError that grpc raises is also a Call
    trailing = dict(call.trailing_metadata() or ())
    code = trailing.get(ERROR_CODE_KEY)
    if isinstance(code, str) and code in BY_CODE:
        found = BY_CODE[code](call.details())
        if isinstance(found, WaitError):
            found.retry_after_ms = _milliseconds(trailing.get(RETRY_AFTER_KEY, ""))
        return found
    if call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return UnreachableError(f"aggregator {peer} cannot be reached: {_why(call.details() or '')}")
    if call.code() is grpc.StatusCode.UNIMPLEMENTED:
        return TransferError(
            f"aggregator {peer} does not implement this call: is this its port for enrolment, or is it older than this client?"
        )
    request_id = trailing.get(REQUEST_ID_KEY)
    where = f" (request {request_id} in its log)" if isinstance(request_id, str) and request_id.isalnum() else ""
    return TransferError(f"aggregator {peer} ended the call: {call.code().name}: {call.details()}{where}")


def _why(details: str) -> str:
    """The details from gRPC, and the way out."""
    _, never_connected, why = details.partition(NEVER_CONNECTED)
    hints = HINTS.items() if never_connected else ()
    return f"{why or details}; {next((hint for sign, hint in hints if sign in why), 'is `compeft serve` running there?')}"


def _milliseconds(text: str | bytes) -> int:
    """The number in a text of at most nine digits; 0 for any other text."""
    return int(text) if isinstance(text, str) and text.isdecimal() and text.isascii() and len(text) < 10 else 0
