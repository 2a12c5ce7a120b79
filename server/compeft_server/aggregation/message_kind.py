"""One kind of message that clients submit: how it is admitted, checked and recorded. Each kind has a file of its own; `aggregator.KINDS`
is the table of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from google.protobuf.message import Message

from compeft_proto.envelope import PayloadType
from compeft_proto.keys import SigningKey
from compeft_proto.privacy_terms import FreshSeed, fresh_seed
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.aggregation.access import Access
from compeft_server.aggregation.expert_log import ExpertLog
from compeft_server.chunks.chunked_payload import Chunked
from compeft_server.chunks.store import ChunkStore
from compeft_server.domain.limits import Limits
from compeft_server.domain.records import Member, Transfer
from compeft_server.ledger.ledger import Ledger

M = TypeVar("M", bound=Message)
Checked = TypeVar("Checked")
Record = Callable[[Checked], Envelope]
"""Steps 8 to 10 of an admitted message, given what `MessageKind.check` returned: the sealed answer."""


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What every part of one aggregator works with. `now_ms` is its clock, `key` signs its answers, `fresh_seed` is where the noise of a
    private round comes from.
    """

    key: SigningKey
    store: ChunkStore
    ledger: Ledger
    log: ExpertLog
    access: Access
    limits: Limits
    now_ms: Callable[[], int]
    fresh_seed: FreshSeed = fresh_seed


@dataclass(frozen=True, slots=True)
class Offer(Generic[M, Checked]):
    """A manifest whose signature holds and that parses, before admission. digest: SHA-256 of its bytes; envelope: the sealed manifest."""

    kind: "MessageKind[M, Checked]"
    member: Member
    message: M
    digest: bytes
    envelope: bytes

    @property
    def refs(self) -> Sequence[pb.ChunkRef]:
        """The chunks it names, in order."""
        return self.kind.refs(self.message)


class MessageKind(ABC, Generic[M, Checked]):
    """One kind of message: M is its protobuf type, Checked what reading its chunks returns.

    exclusive: recorded while no other message is; otherwise beside those of other members.
    """

    payload_type: ClassVar[PayloadType[Any]]
    exclusive: ClassVar[bool] = True

    def __init__(self, parts: Dependencies) -> None:
        self._parts = parts

    @abstractmethod
    def refs(self, message: M) -> Sequence[pb.ChunkRef]:
        """The chunks that the message names, in order."""

    @abstractmethod
    def admit(self, offer: Offer[M, Checked]) -> Envelope | Record[Checked]:
        """Steps 5 and 6, by the manifest alone: the answer given before, if this very message is in already; else what records it."""

    @abstractmethod
    def check(self, offer: Offer[M, Checked], payload: Chunked) -> Checked:
        """Step 7: the chunks are what the manifest says."""

    @abstractmethod
    def described(self, transfer: Transfer, message: M) -> Transfer:
        """`transfer` with what the message says of the call that it came in."""

    def parameters(self, _message: M, _answer: Envelope) -> int:
        """The number of parameters that an accepted message carries, for the dense bytes of the report."""
        return 0

    def readable_chunks(self, _offer: Offer[M, Checked]) -> frozenset[bytes]:
        """SHA-256 of the chunks that need not be sent again, because this member may fetch them."""
        return frozenset()
