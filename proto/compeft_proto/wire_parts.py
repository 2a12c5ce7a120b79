"""Counts the parts of a serialised message before it is parsed: a part of two bytes becomes an object of a hundred in memory.

    check_parts(data, SyncCall)

Only the tags are read, one after the other; byte strings are skipped, messages inside of messages are counted too. What is not valid
protobuf passes: parsing it says so.
"""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from compeft_core.errors import LimitError

MAX_PARTS = 2**17
"""Most fields of one message, those of its inner messages among them: an update may name some 40,000 chunks."""
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
SKIPPED = {FIXED64: 8, FIXED32: 4}


def check_parts(data: bytes, kind: type[Message], most: int = MAX_PARTS) -> None:
    """Errors: LimitError above `most` parts."""
    if _counted(data, 0, len(data), kind.DESCRIPTOR, most) < 0:
        raise LimitError(f"{kind.DESCRIPTOR.name} of {len(data)} bytes has more than {most} parts")


def _counted(data: bytes, at: int, end: int, descriptor: Any, left: int) -> int:
    """How many parts are left of the allowance after data[at:end]; below 0 if it is used up."""
    inner = {f.number: f.message_type for f in descriptor.fields if f.type == FieldDescriptor.TYPE_MESSAGE}
    while at < end:
        left -= 1
        if left < 0:
            return left
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == LENGTH:
            size, at = _varint(data, at, end)
            message = inner.get(tag >> 3)
            if message is not None and size:
                left = _counted(data, at, min(at + size, end), message, left)
                if left < 0:
                    return left
            at += size
        elif kind == VARINT:
            _, at = _varint(data, at, end)
        elif kind in SKIPPED:
            at += SKIPPED[kind]
        else:
            return left
    return left


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of up to 64 bits, and where the next byte is; the end if it is cut off or longer."""
    byte = data[at] if at < end else 128
    if byte < 128:
        return byte, at + 1
    value, shift = 0, 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    return 0, end
