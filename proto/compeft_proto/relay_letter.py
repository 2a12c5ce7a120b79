"""Letters: a call to the aggregator in one piece, for a client whose messages others carry (docs/protocol.md, "Relay").

A letter from the aggregator holds a whole Sync call; `RecordedSync` plays it to whoever would else hold the call itself.
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
"""What that array says it is, where others say how numbers were serialised."""
MAX_BYTES = 256 * 2**20
"""Most bytes of payload in one letter. Flower takes more, but each of the five processes on the way holds the message several times."""


def check_size(payload_bytes: int, what: str) -> None:
    """Errors: LimitError, with the way out."""
    if payload_bytes > MAX_BYTES:
        raise LimitError(
            f"{what} has {payload_bytes} bytes, a letter inside Flower's message takes {MAX_BYTES}: let this client reach the "
            "aggregator itself (Plan(relay=False))"
        )


class RecordedSync:
    """A Sync call that is over, as one that goes on: its replies in their order, and its chunks as they are wanted."""

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
        """Want a chunk. Errors: TruncatedError if it is not in the letter."""
        wanted = message.want.sha256
        if wanted not in self._chunks:
            raise TruncatedError(f"the letter lacks chunk {wanted.hex()[:16]}, or brings it altered")
        self._next = iter([xp.SyncReply(data=self._chunks[wanted])])

    def receive(self) -> xp.SyncReply:
        """The next reply. Errors: TruncatedError after the last."""
        reply = next(self._next, None)
        if reply is None:
            raise TruncatedError("the letter ends before the aggregator's answer does")
        return reply

    def again(self) -> "RecordedSync":
        """From the start."""
        self._next = iter(self._told)
        return self
