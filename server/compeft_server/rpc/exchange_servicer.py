"""The gRPC service: envelopes and bytes in and out, errors to status codes, one ledger row per call. No rule lives here.

A call is a coroutine; each piece of work that may block is done in a pool: `READERS` threads for answers and bytes that leave, `WRITERS`
for what comes in. One member's calls hold one thread of a pool at most, so no member keeps the others out.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar

import structlog

from compeft_core.errors import CompeftError, FormatError, LimitError
from compeft_proto.errors import (
    SignatureError,
    StalledError,
    StorageFullError,
    ThrottledError,
    TruncatedError,
    TrustError,
    UnknownExpertError,
    UnknownKeyError,
    UnreachableError,
    WaitError,
)
from compeft_proto.message_bounds import MAX_NUMBER
from compeft_proto.relay_letter import check_size
from compeft_proto.sealed_box import close_box
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.aggregation.aggregator import Aggregator, SyncAnswer, Upload
from compeft_server.aggregation.message_kind import Checked, M, Offer
from compeft_server.chunks.disk_space import typed_storage_errors
from compeft_server.domain.limits import Limits
from compeft_server.domain.records import Direction, Refusal, Transfer
from compeft_server.ledger.ledger import Ledger
from compeft_server.rpc.background_server import in_pool
from compeft_server.rpc.call_guard import Context, refuse, refuse_quietly
from compeft_server.rpc.call_transfers import accepted, flowed, is_question, of_answer, of_offer, told
from compeft_server.rpc.rate_limits import Rates, Slots
from compeft_server.rpc.refusal_rows import RefusalRows
from compeft_server.rpc.wire_meter import WireMeter

T = TypeVar("T")
log = structlog.get_logger()
MAX_DATA_BYTES = 2**20
"""Most bytes of a chunk in one message."""
READERS, WRITERS = 8, 8
RECORD_MS = 5_000
"""When a client is asked to come back while what calls moved cannot be recorded."""


@dataclass(slots=True)
class _Call:
    """What is known of a call so far: it may end at any point, and what it moved is recorded even then."""

    context: Context
    transfer: Transfer


class ExchangeService(rpc.ExpertExchangeServicer):
    """ExpertExchange over an Aggregator."""

    def __init__(
        self, aggregator: Aggregator, ledger: Ledger, limits: Limits, now_ms: Callable[[], int], handovers: ep.Handovers
    ) -> None:
        self._aggregator, self._ledger, self._now_ms, self._handovers = aggregator, ledger, now_ms, handovers
        self.meter = WireMeter()
        self._slots = Slots(limits.max_calls_per_client, limits.max_calls)
        self._rates, self._commands, self._strangers = Rates(limits), Rates(limits), Rates(limits)
        self._stall_s, self._rows = limits.stall_s, RefusalRows()
        self._reading, self._writing = ThreadPoolExecutor(READERS, "reading"), ThreadPoolExecutor(WRITERS, "writing")
        self._finishing: dict[str, asyncio.Lock] = {}
        self._owed: list[Transfer] = []

    async def Submit(self, request_iterator: AsyncIterator[xp.SubmitRequest], context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """A sealed manifest, its chunks, the sealed answer."""
        requests = aiter(request_iterator)
        first = await anext(requests, xp.SubmitRequest())
        call = await self._begin(context, "up")
        try:
            await self._submit(first, requests, call)
        except CompeftError as error:
            await self._refuse(error, call)
        except asyncio.CancelledError:
            log.info("client went away", peer=context.peer(), keyid=call.transfer.keyid)
            raise

    async def Sync(self, request_iterator: AsyncIterator[xp.SyncCall], context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """A sealed request, the sealed statement and versions, then the chunks that are wanted."""
        requests = aiter(request_iterator)
        first = await anext(requests, xp.SyncCall())
        call = await self._begin(context, "down")
        try:
            await self._sync(first, requests, call)
        except CompeftError as error:
            await self._refuse(error, call)
        except asyncio.CancelledError:
            log.info("client went away", peer=context.peer(), keyid=call.transfer.keyid)
            raise

    async def Conduct(self, request: Envelope, context: Context) -> Envelope:  # noqa: N802
        """One sealed command of a conductor, one sealed statement."""
        return await self._unary(lambda: self._aggregator.conduct(request, self._commands.admit), context)

    async def Observe(self, request: Envelope, context: Context) -> Envelope:  # noqa: N802
        """One sealed report of a pool, one sealed statement."""
        return await self._unary(lambda: self._aggregator.observe(request, self._rates.admit), context)

    async def _unary(self, work: Callable[[], Envelope], context: Context) -> Envelope:
        try:
            return await self._do(self._writing, work)
        except CompeftError as error:
            error = self._throttled(error, context)
            if isinstance(error, TrustError):
                await self._record(Refusal(self._now_ms(), context.peer(), "", 0, error.code, str(error)), "")
            await refuse(context, error)

    async def _submit(self, first: xp.SubmitRequest, requests: AsyncIterator[xp.SubmitRequest], call: _Call) -> None:
        sealed = _envelope(self._unboxed(first, call))
        offer = await self._do(self._writing, lambda: self._aggregator.open(sealed, self._rates.admit))
        call.transfer = of_offer(call.transfer, offer)
        keyid = call.transfer.keyid
        with self._slots.take(keyid):
            upload = await self._do(self._writing, lambda: self._admitted(keyid, offer))
            if isinstance(upload, Envelope):
                await self._send(call, await self._answered(upload, first))
                return
            needed = [xp.NeededChunk(sha256=ref.sha256, offset=offset) for ref, offset in upload.needed]
            await self._send(call, xp.SubmitReply(needed=xp.Needed(chunks=needed)))
            for ref, offset in upload.needed:
                await self._receive(upload, ref, offset, requests, call)
                await self._send(call, xp.SubmitReply(received=ref.sha256))
            answer = await self._finish(keyid, upload)
            call.transfer = accepted(call.transfer, offer, answer)
            await self._send(call, await self._answered(answer, first))

    async def _answered(self, answer: Envelope, first: xp.SubmitRequest) -> xp.SubmitReply:
        """The answer beside the head of the audit log after it."""
        head = await self._do(self._writing, lambda: self._aggregator.heads.since(min(first.head_size, MAX_NUMBER)))
        return xp.SubmitReply(answer=answer, head=head)

    def _admitted(self, keyid: str, offer: Offer[M, Checked]) -> Upload[M, Checked] | Envelope:
        upload = self._aggregator.admit(offer)
        if isinstance(upload, Upload) and (missing := sum(ref.size - offset for ref, offset in upload.needed)):
            self._aggregator.make_room(keyid, missing)
            self._rates.spend(keyid, missing)
        return upload

    async def _finish(self, keyid: str, upload: Upload[M, Checked]) -> Envelope:
        """The answer to an upload that is here. One at a time for each key, also where a client goes away and comes back meanwhile."""
        lock = self._finishing.setdefault(keyid, asyncio.Lock())
        await lock.acquire()
        work = asyncio.ensure_future(self._do(self._writing, lambda: self._aggregator.finish(upload)))
        work.add_done_callback(lambda done: _released(lock, done))
        return await asyncio.shield(work)

    async def _sync(self, first: xp.SyncCall, requests: AsyncIterator[xp.SyncCall], call: _Call) -> None:
        asked = _envelope(first)
        try:
            answer = await self._do(self._reading, lambda: self._aggregator.sync(asked, self._rates.admit))
        except UnknownExpertError as error:
            if is_question(asked):
                await refuse_quietly(
                    call.context, error
                )  # `push` asks whether the name is new: that is not recorded as a refusal
            raise
        call.transfer = of_answer(call.transfer, answer)
        with self._slots.take(call.transfer.keyid):
            if answer.request.relay_key:
                await self._boxed(answer, call)
            else:
                for reply in told(answer):
                    await self._send(call, reply)
                async for wanted in requests:
                    for data in await self._chunk(answer, wanted.want):
                        self._left(call, data)
                        await self._send(call, xp.SyncReply(data=data))
            call.transfer = replace(call.transfer, dense_fp32_bytes=answer.dense_fp32_bytes)

    async def _chunk(self, answer: SyncAnswer, wanted: xp.NeededChunk) -> list[bytes]:
        """A chunk, which has at most 1 MiB, in the pieces that it leaves in."""
        return await self._do(self._reading, lambda: list(self._aggregator.stream(answer, wanted.sha256, wanted.offset)))

    def _left(self, call: _Call, data: bytes) -> None:
        self._rates.spend(call.transfer.keyid, len(data))
        call.transfer = replace(call.transfer, payload_bytes=call.transfer.payload_bytes + len(data))

    async def _boxed(self, answer: SyncAnswer, call: _Call) -> None:
        """The whole answer, unasked, each message in a box for the client that the caller carries it to."""
        refs = answer.way.needed
        check_size(sum(ref.size for ref in refs), f"the way to {answer.request.expert} version {answer.want_version}")
        for reply in (xp.SyncReply(handovers=self._handovers), *told(answer)):
            await self._send_boxed(answer, reply, call)
        for ref in refs:
            data = b"".join(await self._chunk(answer, xp.NeededChunk(sha256=ref.sha256)))
            self._left(call, data)
            await self._send_boxed(answer, xp.SyncReply(data=data), call)
        await self._send(call, xp.SyncReply(listed=True))

    async def _send_boxed(self, answer: SyncAnswer, reply: xp.SyncReply, call: _Call) -> None:
        box = close_box(answer.request.relay_key, reply)
        call.transfer = replace(call.transfer, relayed_bytes=call.transfer.relayed_bytes + len(box))
        await self._send(call, xp.SyncReply(box=box))

    def _unboxed(self, request: xp.SubmitRequest, call: _Call) -> xp.SubmitRequest:
        """A message of a submission, out of its box if a caller carries it for a client."""
        if not request.HasField("box"):
            return request
        call.transfer = replace(call.transfer, relayed_bytes=call.transfer.relayed_bytes + len(request.box))
        return self._aggregator.unbox(request.box)

    async def _begin(self, context: Context, direction: Direction) -> _Call:
        """Start counting; when the call is over, however it ends, what it moved is recorded."""
        await self._settle_debts(context)
        call, started = _Call(context, Transfer(at_ms=self._now_ms(), direction=direction)), time.monotonic()
        connection = self.meter.connection(context.peer())

        def settle(_: Context) -> None:
            wire, seconds = connection.settle(), time.monotonic() - started
            moved = replace(call.transfer, wire_received_bytes=wire.received, wire_sent_bytes=wire.sent, seconds=seconds)
            self._ledger.note_transfer(moved).add_done_callback(lambda done: self._noted(done, moved))

        context.add_done_callback(settle)  # type: ignore[arg-type]  # the stubs take the callback for a method
        return call

    def _noted(self, done: Future[None], moved: Transfer) -> None:
        if (error := done.exception()) is not None:
            log.error("what a call moved is not recorded", keyid=moved.keyid, expert=moved.expert, error=repr(error))
            self._owed.append(moved)

    async def _settle_debts(self, context: Context) -> None:
        """Record what could not be recorded before; while that fails, nothing is served: no byte leaves without its row."""
        while self._owed:
            moved = self._owed.pop()
            try:
                await self._do(self._writing, lambda moved=moved: self._ledger.record_transfer(moved))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            except Exception as error:  # noqa: BLE001  # whatever the database raises
                self._owed.append(moved)
                log.error("what a call moved is still not recorded", error=repr(error))
                await refuse(
                    context, StorageFullError("the aggregator cannot record what calls move: come back later", RECORD_MS)
                )

    async def _receive(
        self, upload: Upload[M, Checked], ref: pb.ChunkRef, offset: int, requests: AsyncIterator[xp.SubmitRequest], call: _Call
    ) -> None:
        """One chunk, message by message. The rate is measured between two of its messages: there nobody waits for an answer."""
        here, before = offset, None
        while here < ref.size:
            came = await anext(requests, None)
            if came is None:
                raise TruncatedError(
                    f"upload ended after {here} of {ref.size} bytes of chunk {ref.sha256.hex()[:16]}: submit again, it goes on there"
                )
            data = self._unboxed(came, call).data
            if not 0 < len(data) <= MAX_DATA_BYTES:
                raise LimitError(f"message with {len(data)} bytes of chunk, expected 1 to {MAX_DATA_BYTES}")
            arrived = time.monotonic()
            if before is not None:
                call.transfer = flowed(call.transfer, len(data), arrived - before)
            here = await self._do(self._writing, lambda data=data: self._aggregator.receive(upload, ref, data))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            before = arrived

    async def _send(self, call: _Call, reply: xp.SubmitReply | xp.SyncReply) -> None:
        """Errors: StalledError if the client takes nothing for too long."""
        try:
            async with asyncio.timeout(self._stall_s):
                await call.context.write(reply)
        except TimeoutError as error:
            raise StalledError(f"nothing was taken for {self._stall_s:g} s: call again") from error

    async def _do(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        def typed() -> T:
            with typed_storage_errors():
                return work()

        return await in_pool(pool, typed)

    def _throttled(self, error: CompeftError, context: Context, keyid: str = "") -> CompeftError:
        """Of a message that nobody enrolled has signed: the error, or that this host has sent too many of them."""
        if isinstance(error, (UnknownKeyError, SignatureError)) or (isinstance(error, FormatError) and not keyid):
            try:
                self._strangers.admit(f"of host {context.peer().rpartition(':')[0]}")
            except ThrottledError as throttled:
                return throttled
        return error

    async def _refuse(self, error: CompeftError, call: _Call) -> NoReturn:
        """Refuse, and record it, unless the client was only told to come back."""
        known = call.transfer
        error = self._throttled(error, call.context, known.keyid)
        if not isinstance(error, (WaitError, StalledError, UnreachableError)):
            made = Refusal(self._now_ms(), call.context.peer(), known.expert, known.round, error.code, str(error))
            await self._record(made, known.keyid)
        await refuse(call.context, error)

    async def _record(self, refusal: Refusal, keyid: str) -> None:
        """A full disk must not hide why a call was refused. Repeated refusals of one client become one row."""
        row = self._rows.row(keyid or refusal.peer.rpartition(":")[0], refusal)
        if row is not None:
            with suppress(StorageFullError):
                await self._do(self._writing, lambda: self._ledger.record_refusal(row))


def _released(lock: asyncio.Lock, done: "asyncio.Future[Envelope]") -> None:
    """Let the next one in; an error whose client has gone away is looked at here, so that asyncio does not complain of it."""
    lock.release()
    if not done.cancelled():
        done.exception()


def _envelope(request: xp.SubmitRequest | xp.SyncCall) -> Envelope:
    if not request.HasField("envelope"):
        raise FormatError("the first message of a call must be a sealed envelope")
    return request.envelope
