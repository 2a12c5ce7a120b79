"""Relay letters: a whole call to the aggregator in one message, for a client that reaches it through Flower (docs/protocol.md, "Relay").

A letter from the aggregator holds all replies of a Sync call; `RecordedSync` replays them to code that expects an open call.
"""

import hashlib
from collections.abc import Iterable, Iterator

from compeft_core.errors import LimitError
from compeft_proto.errors import TruncatedError
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_proto.v1 import exchange_pb2 as xp

RECORD = "compeft-letter"
"""Name of the record that holds a letter in Flower's message, and of the one array in it, whose bytes are the letter's."""
KIND = "compeft.letter.v1"
"""The type of that array, in the field where Flower names the serialisation of numbers."""
MAX_BYTES = 256 * 2**20
"""Most bytes of payload in one letter. Flower takes more, but each of the five processes on the way holds the message several times."""


def check_size(payload_bytes: int, what: str) -> None:
    """Check the size of a payload that is to travel in a letter. Errors: LimitError, with the way out."""
    if payload_bytes > MAX_BYTES:
        raise LimitError(
            f"{what} has {payload_bytes} bytes, a letter inside Flower's message takes {MAX_BYTES}: let this client reach the "
            "aggregator itself (Plan(relay=False))"
        )


class RecordedSync:
    """Replays a recorded Sync call: returns its replies in order and serves chunks on request."""

    def __init__(self, replies: Iterable[xp.SyncReply]) -> None:
        self._told: list[xp.SyncReply] = []
        self._chunks: dict[bytes, bytes] = {}
        self.handovers: list[ep.Introduction] = []
        for reply in replies:
            if reply.HasField("data"):
                self._chunks[hashlib.sha256(reply.data).digest()] = reply.data
            elif reply.HasField("handovers"):
                self.handovers.extend(reply.handovers.statements)
            else:
                self._told.append(reply)
        self._next: Iterator[xp.SyncReply] = iter(self._told)

    def send(self, message: xp.SyncCall) -> None:
        """Ask for a chunk. Errors: TruncatedError if it is not in the letter."""
        wanted = message.want.sha256
        if wanted not in self._chunks:
            raise TruncatedError(f"the relay letter does not hold chunk {wanted.hex()[:16]}, or it was altered: sync again")
        self._next = iter([xp.SyncReply(data=self._chunks[wanted])])

    def receive(self) -> xp.SyncReply:
        """The next reply. Errors: TruncatedError after the last."""
        reply = next(self._next, None)
        if reply is None:
            raise TruncatedError("the relay letter ends before the aggregator's answer does: sync again")
        return reply

    def again(self) -> "RecordedSync":
        """The same call, from its first reply."""
        self._next = iter(self._told)
        return self
