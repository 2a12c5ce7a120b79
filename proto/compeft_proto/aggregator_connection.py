"""AggregatorConnection: a member's connection to one aggregator. It holds the channel, the aggregator's trusted keys and the retry.

connection = AggregatorConnection(key, "127.0.0.1:8443", tls, (aggregator_key,))
sealed = connection.persist(lambda: connection.submit(update, refs, payload))
receipt = connection.opened(sealed, RECEIPT)
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import grpc

from compeft_proto import envelope as dsse
from compeft_proto.chunk_refs import refs_of
from compeft_proto.clock import now_ms
from compeft_proto.errors import UnreachableError, from_rpc
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.log_head import HeadInMemory, HeadMemory, follow_head, size_known
from compeft_proto.sync_answer import Answer, SyncDialogue, read_answer
from compeft_proto.transport import ClientTls, SubmitDialogue, open_channel, persist, upload
from compeft_proto.trusted_keys import TrustedKeys, listed_handovers
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_proto.v1 import enrolment_pb2_grpc as membership
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope

NONCE_BYTES = 16
PROBE_S = 10.0
"""How long `check_reachable` waits for an answer."""
PATIENCE_S = 30.0
"""How long a transfer that fails is tried again."""

T = TypeVar("T")


def date(request: pb.SyncRequest) -> None:
    """Give `request` a fresh nonce and the present time."""
    request.nonce, request.issued_at_ms = secrets.token_bytes(NONCE_BYTES), now_ms()


class AggregatorConnection:
    """One member's connection, signed with its `key`. Without TLS the address must be loopback.

    keys: the aggregator's, newest first; learned: called with the new keys after the aggregator has rotated its key.
    patience_s: seconds for which a failing transfer is tried again. heads: remembers the aggregator's audit log.
    """

    def __init__(
        self,
        key: SigningKey,
        address: str,
        tls: ClientTls | None,
        keys: tuple[PublicKey, ...],
        patience_s: float = PATIENCE_S,
        learned: Callable[[tuple[PublicKey, ...]], None] = lambda _: None,
        heads: HeadMemory | None = None,
    ) -> None:
        self.key, self._address, self._patience_s = key, address, patience_s
        self._channel = open_channel(address, tls)
        self._stub = rpc.ExpertExchangeStub(self._channel)
        self.trusted = TrustedKeys(keys, self.handovers, learned)
        self.heads = heads or HeadInMemory()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def handovers(self) -> Iterable[ep.Introduction]:
        """The aggregator's key rotations, asked for now; none if it cannot be reached."""
        return listed_handovers(self._channel)

    def check_reachable(self) -> None:
        """Ask the aggregator for its key rotations, which changes nothing. Errors: UnreachableError if nothing answers."""
        try:
            membership.MembershipStub(self._channel).ListHandovers(ep.HandoversRequest(), timeout=PROBE_S)
        except grpc.RpcError as error:
            found = from_rpc(error, self._address)
            if isinstance(found, UnreachableError):
                raise found from None  # gRPC's own error says the same in 20 lines

    def persist(self, attempt: Callable[[], T]) -> T:
        """The result of `attempt`, which is called again while its transfer fails. Errors: the last TransferError; all others at once."""
        return persist(attempt, self._patience_s)

    def retried(self, attempt: Callable[[], T]) -> T:
        """As `persist`, and once more if the answer was signed by a key that a trusted one has introduced."""
        return self.persist(lambda: self.trusted.with_rotation(attempt))

    def date(self, request: pb.SyncRequest) -> None:
        """Give `request` a fresh nonce and the present time."""
        date(request)

    @contextmanager
    def call(self, request: Envelope) -> Iterator[SyncDialogue]:
        """A Sync call that begins with a sealed request. Errors: the aggregator's refusal, UnreachableError, TruncatedError."""
        with SyncDialogue(self._stub.Sync, self._address) as dialogue:
            dialogue.send(xp.SyncCall(envelope=request))
            yield dialogue

    @contextmanager
    def ask(self, request: pb.SyncRequest) -> Iterator[SyncDialogue]:
        """As `call`, for a request that is sealed with this member's key."""
        request.head_size = self.head_size()
        with self.call(dsse.seal(self.key, dsse.SYNC_REQUEST, request)) as dialogue:
            yield dialogue

    def read(self, dialogue: SyncDialogue, request: pb.SyncRequest) -> Answer:
        """The answer to a request, its signatures and its head of the audit log checked. Errors: those of `read_answer`, `follow_log`."""
        answer = read_answer(dialogue, self.trusted.newest, self.trusted.any)
        self.follow_log(request.head_size, answer.statement.head)
        return answer

    def head_size(self) -> int:
        """Entries of the aggregator's audit log that are known of; 0 for none."""
        return size_known(self.heads, self.trusted.keys)

    def follow_log(self, asked: int, head: pb.LogHead) -> None:
        """Check and remember the head in an answer to a request that named `asked` entries. Errors: those of `log_head.follow_head`."""
        follow_head(self.heads, asked, head, self.trusted.keys)

    def submission(self) -> SubmitDialogue:
        """A Submit call, not yet begun."""
        return SubmitDialogue(self._stub.Submit, self._address)

    def submit(
        self, sealed: Envelope, refs: Sequence[pb.ChunkRef], payload: bytes, tick: Callable[[int], None] = lambda _sent: None
    ) -> Envelope:
        """The aggregator's sealed answer to a manifest and the chunks of `payload`, in one call. Errors: those of `call`."""
        asked = self.head_size()
        with self.submission() as dialogue:
            answer = upload(dialogue, sealed, refs, payload, tick, asked)
        self.follow_submission(asked, dialogue)
        return answer

    def follow_submission(self, asked: int, dialogue: SubmitDialogue) -> None:
        """As `follow_log`, of a Submit call that has ended; a change of key is followed."""
        head = dialogue.newest.head if dialogue.newest else pb.LogHead()
        self.trusted.with_rotation(lambda: self.follow_log(asked, head))

    def hand_in(self, sealed: Envelope, payload: bytes, _relay_key: bytes) -> Envelope:
        """As `submit`, tried again while the transfer fails."""
        refs = refs_of(payload)
        return self.persist(lambda: self.submit(sealed, refs, payload))

    def opened(self, answer: Envelope, kind: dsse.PayloadType[dsse.N]) -> dsse.N:
        """The message in an answer that is kept: signed by any trusted key. Errors: those of `open_envelope`."""
        return self.trusted.with_rotation(lambda: dsse.open_envelope(answer, self.trusted.any, kind))

    def command(self, sealed: Envelope, kind: dsse.PayloadType[dsse.N]) -> dsse.N:
        """The answer to a conductor's sealed command, signed by the newest key. Errors: the aggregator's refusal, UnreachableError."""
        return self._answered(lambda: self._stub.Conduct(sealed), kind)

    def observe(self, sealed: Envelope, kind: dsse.PayloadType[dsse.N]) -> dsse.N:
        """The answer to a sealed report of what this member observed. Errors: as `command`."""
        return self._answered(lambda: self._stub.Observe(sealed), kind)

    def _answered(self, call: Callable[[], Envelope], kind: dsse.PayloadType[dsse.N]) -> dsse.N:
        try:
            reply = call()
        except grpc.RpcError as error:
            raise from_rpc(error, self._address) from error
        return self.trusted.with_rotation(lambda: dsse.open_envelope(reply, self.trusted.newest, kind))
