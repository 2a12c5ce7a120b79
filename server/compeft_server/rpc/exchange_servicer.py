"""The gRPC service: envelopes and bytes in and out, errors to status codes, one ledger row per call. No rule lives here."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import NoReturn

import grpc
import structlog

from compeft_core.errors import CompeftError, FormatError, LimitError
from compeft_proto.errors import (
    STATUS,
    StorageFullError,
    TruncatedError,
    TrustError,
    UnknownExpertError,
    WaitError,
    trailing_metadata,
)
from compeft_proto.relay_letter import check_size
from compeft_proto.sealed_box import close_box
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.aggregation.aggregator import Aggregator, Offer, SyncAnswer, Upload
from compeft_server.chunks.disk_space import typed_storage_errors
from compeft_server.domain.limits import Limits
from compeft_server.domain.records import Direction, Refusal, Transfer
from compeft_server.ledger.ledger import Ledger
from compeft_server.rpc.rate_limits import Rates, Slots, Watchdog
from compeft_server.rpc.wire_meter import WireMeter

log = structlog.get_logger()
MAX_DATA_BYTES = 2**20
"""Most bytes of a chunk in one message."""


@dataclass(slots=True)
class _Call:
    """What is known of a call so far: it may end at any point, and what it moved is recorded even then."""

    transfer: Transfer


class ExchangeService(rpc.ExpertExchangeServicer):
    """ExpertExchange over an Aggregator."""

    def __init__(
        self, aggregator: Aggregator, ledger: Ledger, limits: Limits, now_ms: Callable[[], int], handovers: ep.Handovers
    ) -> None:
        self._aggregator, self._ledger, self._now_ms, self._handovers = aggregator, ledger, now_ms, handovers
        self._meter = WireMeter()
        self._slots = Slots(limits.max_calls_per_client, limits.max_calls)
        self._rates = Rates(limits)
        self._watchdog = Watchdog(limits.stall_s)

    def Submit(  # noqa: N802  # gRPC's name
        self, request_iterator: Iterator[xp.SubmitRequest], context: grpc.ServicerContext
    ) -> Iterator[xp.SubmitReply]:
        """A sealed manifest, its chunks, the sealed answer."""
        call = self._begin(context, "up")
        try:
            with typed_storage_errors():
                yield from self._submit(request_iterator, context, call)
        except CompeftError as error:
            self._refuse(context, error, call)
        except grpc.RpcError:
            log.info("client went away", peer=context.peer(), keyid=call.transfer.keyid)

    def Sync(  # noqa: N802  # gRPC's name
        self, request_iterator: Iterator[xp.SyncCall], context: grpc.ServicerContext
    ) -> Iterator[xp.SyncReply]:
        """A sealed request, the sealed statement and versions, then the chunks that are wanted."""
        call = self._begin(context, "down")
        try:
            with typed_storage_errors():
                yield from self._sync(request_iterator, context, call)
        except CompeftError as error:
            self._refuse(context, error, call)
        except grpc.RpcError:
            log.info("client went away", peer=context.peer(), keyid=call.transfer.keyid)

    def Conduct(self, request: Envelope, context: grpc.ServicerContext) -> Envelope:  # noqa: N802  # gRPC's name
        """One sealed command of a conductor, one sealed statement."""
        try:
            with typed_storage_errors():
                return self._aggregator.conduct(request)
        except CompeftError as error:
            if isinstance(error, TrustError):
                self._record(Refusal(self._now_ms(), context.peer(), "", 0, error.code, str(error)))
            _abort(context, error)

    def _submit(
        self, requests: Iterator[xp.SubmitRequest], context: grpc.ServicerContext, call: _Call
    ) -> Iterator[xp.SubmitReply]:
        requests = self._unboxed(requests, call)
        offer = self._aggregator.open(_envelope(next(requests, xp.SubmitRequest())))
        call.transfer = _of_offer(call.transfer, offer)
        keyid = call.transfer.keyid
        self._rates.admit(keyid)
        with self._slots.take(keyid):
            upload = self._aggregator.admit(offer)
            if isinstance(upload, Envelope):
                yield xp.SubmitReply(answer=upload)
                return
            missing = sum(ref.size - offset for ref, offset in upload.needed)
            if missing:
                self._aggregator.make_room(keyid, missing)
                self._rates.spend(keyid, missing)
            needed = [xp.NeededChunk(sha256=ref.sha256, offset=offset) for ref, offset in upload.needed]
            yield xp.SubmitReply(needed=xp.Needed(chunks=needed))
            for ref, offset in upload.needed:
                self._receive(upload, ref, offset, requests, context, call)
                yield xp.SubmitReply(received=ref.sha256)
            answer = self._aggregator.finish(upload)
            call.transfer = _accepted(call.transfer, offer, answer)
            yield xp.SubmitReply(answer=answer)

    def _sync(self, requests: Iterator[xp.SyncCall], context: grpc.ServicerContext, call: _Call) -> Iterator[xp.SyncReply]:
        asked = _envelope(next(requests, xp.SyncCall()))
        try:
            answer = self._aggregator.sync(asked)
        except UnknownExpertError as error:
            if _is_question(asked):
                _end(context, error)  # `push` asks whether the name is new: that is not recorded as a refusal
            raise
        call.transfer = _of_answer(call.transfer, answer)
        keyid = call.transfer.keyid
        self._rates.admit(keyid)
        with self._slots.take(keyid):
            if answer.request.relay_key:
                yield from self._boxed(answer, context, call)
            else:
                yield from _told(answer)
                for wanted in requests:
                    for data in self._chunk(answer, wanted.want, context, call):
                        yield xp.SyncReply(data=data)
            call.transfer = replace(call.transfer, dense_fp32_bytes=answer.dense_fp32_bytes)

    def _chunk(self, answer: SyncAnswer, wanted: xp.NeededChunk, context: grpc.ServicerContext, call: _Call) -> Iterator[bytes]:
        for data in self._aggregator.stream(answer, wanted.sha256, wanted.offset):
            self._watchdog.moved(context)
            self._rates.spend(call.transfer.keyid, len(data))
            call.transfer = replace(call.transfer, payload_bytes=call.transfer.payload_bytes + len(data))
            yield data

    def _boxed(self, answer: SyncAnswer, context: grpc.ServicerContext, call: _Call) -> Iterator[xp.SyncReply]:
        """The whole answer, unasked, each message in a box for the client that the caller carries it to."""
        refs = answer.way.needed
        check_size(sum(ref.size for ref in refs), f"the way to {answer.request.expert} version {answer.want_version}")
        chunks = (xp.NeededChunk(sha256=ref.sha256) for ref in refs)
        data = (xp.SyncReply(data=b"".join(self._chunk(answer, chunk, context, call))) for chunk in chunks)
        for reply in chain((xp.SyncReply(handovers=self._handovers),), _told(answer), data):
            box = close_box(answer.request.relay_key, reply)
            call.transfer = replace(call.transfer, relayed_bytes=call.transfer.relayed_bytes + len(box))
            yield xp.SyncReply(box=box)
        yield xp.SyncReply(listed=True)

    def _unboxed(self, requests: Iterator[xp.SubmitRequest], call: _Call) -> Iterator[xp.SubmitRequest]:
        """The messages of a submission, those out of their boxes that a caller carries for a client."""
        for request in requests:
            if request.HasField("box"):
                call.transfer = replace(call.transfer, relayed_bytes=call.transfer.relayed_bytes + len(request.box))
                yield self._aggregator.unbox(request.box)
            else:
                yield request

    def _begin(self, context: grpc.ServicerContext, direction: Direction) -> _Call:
        """Start counting and watching; when the call is over, however it ends, what it moved is recorded."""
        call, started = _Call(Transfer(at_ms=self._now_ms(), direction=direction)), time.monotonic()
        connection = self._meter.connection(context.peer())
        self._watchdog.moved(context)

        def settle() -> None:
            self._watchdog.over(context)
            wire, seconds = connection.settle(), time.monotonic() - started
            self._ledger.note_transfer(
                replace(call.transfer, wire_received_bytes=wire.received, wire_sent_bytes=wire.sent, seconds=seconds)
            )

        if not context.add_callback(settle):
            settle()  # the client went away before the call began
        return call

    def _receive(
        self,
        upload: Upload,
        ref: pb.ChunkRef,
        offset: int,
        requests: Iterator[xp.SubmitRequest],
        context: grpc.ServicerContext,
        call: _Call,
    ) -> None:
        """One chunk, message by message. The rate is measured between two of its messages: there nobody waits for an answer."""
        here, before = offset, None
        while here < ref.size:
            request = next(requests, None)
            if request is None:
                raise TruncatedError(
                    f"upload ended after {here} of {ref.size} bytes of chunk {ref.sha256.hex()[:16]}: submit again, it goes on there"
                )
            if not 0 < len(request.data) <= MAX_DATA_BYTES:
                raise LimitError(f"message with {len(request.data)} bytes of chunk, allowed are 1 to {MAX_DATA_BYTES}")
            self._watchdog.moved(context)
            arrived = time.monotonic()
            if before is not None:
                call.transfer = _flowed(call.transfer, len(request.data), arrived - before)
            here, before = self._aggregator.receive(upload, ref, request.data), arrived

    def _refuse(self, context: grpc.ServicerContext, error: CompeftError, call: _Call) -> NoReturn:
        """Refuse, and record it, unless the client was only told to come back."""
        known = call.transfer
        if not isinstance(error, WaitError):
            self._record(Refusal(self._now_ms(), context.peer(), known.expert, known.round, error.code, str(error)))
        _abort(context, error)

    def _record(self, refusal: Refusal) -> None:
        """A full disk must not hide why a call was refused."""
        with suppress(StorageFullError), typed_storage_errors():
            self._ledger.record_refusal(refusal)


def _abort(context: grpc.ServicerContext, error: CompeftError) -> NoReturn:
    log.warning("refused", peer=context.peer(), code=error.code, reason=str(error))
    _end(context, error)


def _end(context: grpc.ServicerContext, error: CompeftError) -> NoReturn:
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), *trailing_metadata(error)))
    context.abort(STATUS[type(error)], str(error))


def _told(answer: SyncAnswer) -> Iterator[xp.SyncReply]:
    """What a client hears before any chunk."""
    yield xp.SyncReply(statement=answer.statement)
    for version in answer.way.versions:
        yield xp.SyncReply(version=version)
    if answer.way.snapshot is not None:
        yield xp.SyncReply(snapshot=answer.way.snapshot)
    yield xp.SyncReply(listed=True)


def _envelope(request: xp.SubmitRequest | xp.SyncCall) -> Envelope:
    if not request.HasField("envelope"):
        raise FormatError("the first message of a call must be a sealed envelope")
    return request.envelope


def _flowed(transfer: Transfer, size: int, seconds: float) -> Transfer:
    return replace(transfer, flow_bytes=transfer.flow_bytes + size, flow_seconds=transfer.flow_seconds + seconds)


def _is_question(verified: Envelope) -> bool:
    """Whether a request, whose signature was checked, asks for the newest version's number alone."""
    return pb.SyncRequest.FromString(verified.payload).statement_only


def _of_offer(transfer: Transfer, offer: Offer) -> Transfer:
    """What a genuine manifest says of the call it came in."""
    message, keyid = offer.message, offer.member.public.keyid
    if isinstance(message, pb.Genesis):
        return replace(transfer, keyid=keyid, expert=message.expert)
    if isinstance(message, pb.Package):
        return replace(transfer, keyid=keyid, expert=message.expert, version=message.version)
    return replace(
        transfer,
        keyid=keyid,
        expert=message.expert,
        run=message.run,
        round=message.round,
        version=message.base_version + 1,
    )


def _accepted(transfer: Transfer, offer: Offer, answer: Envelope) -> Transfer:
    """An accepted upload moved its payload, which dense would have been every parameter."""
    coding = offer.message.coding if isinstance(offer.message, pb.UpdateManifest) else pb.Coding()
    parameters = coding.ternary_size + coding.dense_size
    if isinstance(offer.message, pb.Package):
        parameters = pb.VersionManifest.FromString(answer.payload).publication.parameters
    return replace(transfer, dense_fp32_bytes=4 * parameters, payload_bytes=sum(ref.size for ref in offer.refs))


def _of_answer(transfer: Transfer, answer: SyncAnswer) -> Transfer:
    """What an answered sync says of its call. The payload is added as it leaves, dense bytes once it all has left."""
    return replace(
        transfer,
        keyid=answer.member.public.keyid,
        expert=answer.request.expert,
        run=answer.request.run,
        round=answer.request.round,
        version=answer.want_version,
    )
