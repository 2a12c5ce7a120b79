"""Bounds on every string, byte string and number of a message, in one table that the parser applies to all messages from outside.

A message passes these before anything looks at what it says: its words go into a database, a log and a terminal, its numbers into
columns of 64 bits with a sign. Each use has checks of its own after that.
"""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from compeft_core.errors import FormatError

MAX_STRING, MAX_BYTES, MAX_NUMBER = 256, 64, 2**63 - 1
"""Most characters of a string, bytes of a byte string, and the largest whole number, where LONGER and WIDER say nothing."""
LONGER = {
    "compeft.v1.Genesis.adapter_config": 2**20,
    "compeft.v1.Layout.middle": 4096,
    "compeft.v1.EnrolmentRequest.certificate_request": 4096,
    "compeft.v1.RenewalRequest.certificate_request": 4096,
    "compeft.v1.Grant.certificate": 2**16,
    "compeft.v1.Grant.authorities": 2**16,
    "compeft.v1.Envelope.payload": 2**24,
}
"""Fields that may be longer, by their full name: bytes."""
WIDER = {"compeft.v1.SeededState.seed", "compeft.v1.MergeParameters.seed"}
"""Numbers that use all 64 bits."""
WHOLE = {FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_INT64}


def check_bounds(message: Message) -> None:
    """Errors: FormatError that names the field, what it has and what is allowed; also for text with control characters."""
    for field, value in message.ListFields():
        values: Any = value if field.is_repeated else (value,)
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            for inner in values:
                check_bounds(inner)
        elif field.type == FieldDescriptor.TYPE_BYTES:
            _check_length(field.full_name, max(map(len, values)), "bytes", LONGER.get(field.full_name, MAX_BYTES))
        elif field.type == FieldDescriptor.TYPE_STRING:
            for text in values:
                _check_text(field.full_name, text)
        elif field.cpp_type in WHOLE and field.full_name not in WIDER:
            _check_number(field.full_name, max(values))


def _check_length(name: str, length: int, unit: str, most: int) -> None:
    if length > most:
        raise FormatError(f"{_short(name)} has {length} {unit}, expected up to {most}")


def _check_text(name: str, text: str) -> None:
    _check_length(name, len(text), "characters", MAX_STRING)
    if not text.isprintable():
        raise FormatError(f"{_short(name)} is {text[:40]!a}, expected printable characters")


def _check_number(name: str, number: int) -> None:
    if number > MAX_NUMBER:
        raise FormatError(f"{_short(name)} is {number}, expected numbers up to {MAX_NUMBER}")


def _short(full_name: str) -> str:
    """`SyncRequest.run` of `compeft.v1.SyncRequest.run`."""
    return full_name.removeprefix("compeft.v1.")
