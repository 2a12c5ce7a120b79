"""What every call passes before a service sees it: caps on open calls, a deadline for each message, and no call of a revoked member.

A call costs no thread while it waits. One that says nothing for FIRST_S seconds, or stands still for longer than `stall_s`, is ended.
Health checks are not counted, so that a full house still answers its orchestrator.
"""

import asyncio
import errno
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
import structlog
from grpc import aio

from compeft_core.errors import CompeftError
from compeft_proto.errors import STATUS, BusyError, StalledError, UnknownKeyError, trailing_metadata
from compeft_proto.wire_parts import check_parts
from compeft_server.rpc.connection_guard import Connections

if TYPE_CHECKING:
    AioInterceptor = aio.ServerInterceptor[Any, Any]
    Context = aio.ServicerContext[Any, Any]
else:  # generic to type checkers only
    AioInterceptor, Context = aio.ServerInterceptor, aio.ServicerContext

T = TypeVar("T")
log = structlog.get_logger()
FIRST_S = 10.0
"""Seconds in which a call must send its first message."""
PER_CONNECTION, PER_MEMBER, ALL = 128, 512, 4096
"""Most calls open at once: over one connection, with one certificate, and in all."""
BUSY_MS = 500
MAX_CALL_PARTS = 1024
"""Most parts of a message as it arrives: an envelope has a dozen, and what is sealed in it is one of them."""
EXEMPT = "/grpc.health.v1.Health/Check"


@dataclass(frozen=True, slots=True)
class Handler:
    """A gRPC method handler that takes a stream of requests, whatever its method takes. kind: whether the method streams requests,
    and replies.
    """

    kind: tuple[bool, bool]
    request_streaming: bool
    response_streaming: bool
    request_deserializer: Any
    response_serializer: Any
    unary_unary: Any = None
    unary_stream: Any = None
    stream_unary: Any = None
    stream_stream: Any = None


class Deadlined:
    """The messages of a call. Errors while iterating: StalledError if one does not come in time; what `check` raises."""

    def __init__(self, requests: Any, first_s: float, between_s: float, check: Callable[[], None]) -> None:
        self._requests, self._limit_s, self._between_s, self._check = aiter(requests), first_s, between_s, check

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            async with asyncio.timeout(self._limit_s):
                request = await anext(self._requests)
        except TimeoutError as error:
            raise StalledError(f"no message came within {self._limit_s:g} s: call again") from error
        self._check()
        self._limit_s = self._between_s
        return request


class CallGuard(AioInterceptor):
    """Guards all calls of a server, whose connections are `connections`."""

    def __init__(self, stall_s: float, connections: Connections) -> None:
        self._stall_s, self._connections = stall_s, connections
        self._open: Counter[str] = Counter()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """The handler of a call, guarded; unknown methods stay unknown."""
        handler = await continuation(details)
        return None if handler is None else self._guarded(handler, details.method)

    def _guarded(self, handler: Any, method: str) -> Handler:
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        streamed = handler.request_streaming

        async def guarded(requests: Any, context: Context) -> Any:
            try:
                with self._counted(context, method):
                    messages = Deadlined(requests, min(FIRST_S, self._stall_s), self._stall_s, lambda: self._check(context))
                    request = messages if streamed else await anext(messages)
                    return await _result(behaviour, request, context)
            except StopAsyncIteration:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call ended without a message")
            except (BusyError, StalledError, UnknownKeyError) as error:
                await refuse(context, error)
            except aio.AbortError:
                raise
            except aio.InternalError:  # the answer has nobody to go to: not a fault, and thousands of them must cost nothing
                return None
            except Exception as error:  # whatever it is, a client hears no SQL, host or path of it
                log.error("call failed", error=repr(error), exc_info=True)
                if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                    await refuse(
                        context, BusyError("the aggregator is out of file descriptors: try again in a few seconds", BUSY_MS)
                    )
                await context.abort(grpc.StatusCode.INTERNAL, "the aggregator failed: its log says why")

        name = "stream_stream" if handler.response_streaming else "stream_unary"
        kind = (streamed, handler.response_streaming)
        coders = (_bounded(handler.request_deserializer), handler.response_serializer)
        return Handler(kind, True, handler.response_streaming, *coders, **{name: guarded})

    @contextmanager
    def _counted(self, context: Context, method: str) -> Iterator[None]:
        name, peer = name_of(context), context.peer()
        self._connections.called(peer, name)
        if method.startswith(EXEMPT):
            yield
            return
        self._check(context)
        keys = {f"connection {peer}": PER_CONNECTION, "": ALL} | ({f"member {name}": PER_MEMBER} if name else {})
        for key, most in keys.items():
            if self._open[key] >= most:
                raise BusyError(f"{key or 'the aggregator'} has {most} calls open: wait for one to end", BUSY_MS)
        self._open.update(keys.keys())
        try:
            yield
        finally:
            self._open.subtract(keys.keys())
            for key in keys:
                if not self._open[key]:
                    del self._open[key]

    def _check(self, context: Context) -> None:
        """Errors: UnknownKeyError for a revoked member's certificate, whose connections `connections` ends."""
        if self._connections.is_revoked(name_of(context)):
            raise UnknownKeyError("the member of this certificate is revoked")


def _bounded(parse: Callable[[bytes], T] | None) -> Callable[[bytes], T] | None:
    """The same parser of a message, which is told nothing of one with too many parts: gRPC ends such a call as one that cannot be read."""
    kind = getattr(parse, "__self__", None)
    if parse is None or kind is None or not hasattr(kind, "DESCRIPTOR"):
        return parse

    def checked(data: bytes) -> T:
        check_parts(data, kind, MAX_CALL_PARTS)
        return parse(data)

    return checked


async def refuse(context: Context, error: CompeftError) -> NoReturn:
    """End a call with the status, the code and the hint of an error."""
    log.warning("refused", peer=context.peer(), code=error.code, reason=str(error))
    await refuse_quietly(context, error)


async def refuse_quietly(context: Context, error: CompeftError) -> NoReturn:
    """The same without a line in the log."""
    trailing = (*(context.trailing_metadata() or ()), *trailing_metadata(error))
    await context.abort(next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), str(error), trailing)
    raise AssertionError("abort raises")


def name_of(context: Context) -> str:
    """The common name of the client's certificate; empty without one."""
    found = (context.auth_context() or {}).get("x509_common_name", ())
    return next((bytes(name).decode(errors="replace") for name in found), "")


async def _result(behaviour: Any, request: Any, context: Context) -> Any:
    """What a handler returns; one that yields its replies has them written."""
    if not inspect.isasyncgenfunction(behaviour):
        return await behaviour(request, context)
    async for reply in behaviour(request, context):
        await context.write(reply)
    return None
