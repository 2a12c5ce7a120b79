"""How the requests and updates of one client reach the aggregator, and its answers come back: over a connection of its own, or in
letters that others carry. Bytes only: what an answer says is checked by whoever asked, the same way for both.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

from compeft_client.exchange.remembered_head import RememberedHead
from compeft_client.identity.edge_config import Edge
from compeft_proto import answer_checks
from compeft_proto import envelope as dsse
from compeft_proto import relay_letter as letters
from compeft_proto.aggregator_connection import AggregatorConnection, date
from compeft_proto.chunk_refs import chunks
from compeft_proto.clock import now_ms
from compeft_proto.errors import ReplayError, UnknownKeyError
from compeft_proto.keys import SigningKey
from compeft_proto.sealed_box import close_box, open_box, relay_key_of
from compeft_proto.sync_answer import SyncStream
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope

T = TypeVar("T")


class Carrier(Protocol):
    """The transport of one client: an `AggregatorConnection`, or `Letters`."""

    def date(self, request: pb.SyncRequest) -> None:
        """Give `request` its nonce and time. Errors: as `trust.check_carried`, if it was made before and others have carried it."""

    def ask(self, request: pb.SyncRequest) -> AbstractContextManager[SyncStream]:
        """The call that answers `request`."""

    def hand_in(self, sealed: Envelope, payload: bytes, relay_key: bytes) -> Envelope | None:
        """Bring an update on its way; the aggregator's sealed answer, or None if only the next sync says what became of it.

        `relay_key` is what the aggregator's last statement named.
        """

    def persist(self, attempt: Callable[[], T]) -> T:
        """`attempt`, again and again where that helps."""

    def handovers(self) -> Iterable[ep.Introduction]:
        """The aggregator's changes of key."""

    def close(self) -> None:
        """Close the transport."""


def connected(edge: Edge) -> AggregatorConnection:
    """The connection of `edge` to its aggregator. Errors: InputError for an address that is not loopback and has no TLS."""
    keys, heads = (edge.aggregator, *edge.older), RememberedHead(edge.state)
    return AggregatorConnection(edge.key, edge.address, edge.tls, keys, edge.patience_s, edge.learned, heads)


class Letters:
    """The letter that came with a message, and the one that goes back with the reply to it.

    Errors of the constructor: FormatError for an answer that is not for this client's key.
    """

    def __init__(self, key: SigningKey, letter: xp.Letter) -> None:
        self._key, self._box, self._came = key, relay_key_of(key), letter
        self._read = letters.RecordedSync(open_box(self._box, xp.SyncReply, box) for box in letter.answer)
        self.reply = xp.Letter()

    @property
    def answers(self) -> bool:
        """Whether the letter brings an answer. If not, a request for one is all that is asked for."""
        return self._came.HasField("request")

    def enclose(self, request: pb.SyncRequest) -> None:
        """Put the request that is to be answered next into the reply."""
        date(request)
        request.relay_key = self._box.public
        self.reply.request.CopyFrom(dsse.seal(self._key, dsse.SYNC_REQUEST, request))

    def date(self, request: pb.SyncRequest) -> None:
        """Those of the request that the letter answers."""
        try:
            carried = dsse.open_envelope(self._came.request, dsse.only(self._key.public), dsse.SYNC_REQUEST)
        except UnknownKeyError as error:
            raise ReplayError(f"the letter answers a request that key {self._key.keyid} has not signed") from error
        answer_checks.check_carried(carried, request, now_ms())
        request.nonce, request.issued_at_ms, request.head_size = carried.nonce, carried.issued_at_ms, carried.head_size

    @contextmanager
    def ask(self, _request: pb.SyncRequest) -> Iterator[SyncStream]:
        """The call that the letter holds."""
        yield self._read.again()

    def hand_in(self, sealed: Envelope, payload: bytes, relay_key: bytes) -> None:
        """Put the update into the reply. Errors: LimitError; FormatError if the aggregator has named no relay key."""
        letters.check_size(len(payload), "the update")
        self.reply.update = close_box(relay_key, xp.SubmitRequest(envelope=sealed))
        for sha256, chunk in {hashlib.sha256(chunk).digest(): chunk for chunk in chunks(payload)}.items():
            self.reply.chunks.add(sha256=sha256, box=close_box(relay_key, xp.SubmitRequest(data=chunk)))

    def persist(self, attempt: Callable[[], T]) -> T:
        """Once: the letter stays what it is."""
        return attempt()

    def handovers(self) -> Iterable[ep.Introduction]:
        """Those that the letter brings."""
        return self._read.handovers

    def close(self) -> None:
        """Nothing is open."""
