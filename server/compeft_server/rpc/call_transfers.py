"""What a call moved, as it becomes known: pure functions from one `Transfer` to the next."""

from collections.abc import Iterator
from dataclasses import replace

from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.aggregation.aggregator import SyncAnswer
from compeft_server.aggregation.message_kind import Checked, M, Offer
from compeft_server.domain.records import Transfer


def told(answer: SyncAnswer) -> Iterator[xp.SyncReply]:
    """What a client hears before any chunk."""
    yield xp.SyncReply(statement=answer.statement)
    for version in answer.way.versions:
        yield xp.SyncReply(version=version)
    if answer.way.snapshot is not None:
        yield xp.SyncReply(snapshot=answer.way.snapshot)
    yield xp.SyncReply(listed=True)


def flowed(transfer: Transfer, size: int, seconds: float) -> Transfer:
    """With bytes that arrived, and the seconds between their message and the one before it."""
    return replace(transfer, flow_bytes=transfer.flow_bytes + size, flow_seconds=transfer.flow_seconds + seconds)


def is_question(verified: Envelope) -> bool:
    """Whether a request, whose signature was checked, asks for the newest version's number alone."""
    return pb.SyncRequest.FromString(verified.payload).statement_only


def of_offer(transfer: Transfer, offer: Offer[M, Checked]) -> Transfer:
    """What a genuine manifest says of the call it came in."""
    return replace(offer.kind.described(transfer, offer.message), keyid=offer.member.public.keyid)


def accepted(transfer: Transfer, offer: Offer[M, Checked], answer: Envelope) -> Transfer:
    """An accepted upload moved its payload, which dense would have been every parameter."""
    parameters = offer.kind.parameters(offer.message, answer)
    return replace(transfer, dense_fp32_bytes=4 * parameters, payload_bytes=sum(ref.size for ref in offer.refs))


def of_answer(transfer: Transfer, answer: SyncAnswer) -> Transfer:
    """What an answered sync says of its call. The payload is added as it leaves, dense bytes once it all has left."""
    return replace(
        transfer,
        keyid=answer.member.public.keyid,
        expert=answer.request.expert,
        run=answer.request.run,
        round=answer.request.round,
        version=answer.want_version,
    )
