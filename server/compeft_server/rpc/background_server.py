"""An asynchronous gRPC server behind an interface without `async`: all servers of a process share one event loop in a thread of its own.

A call that waits for its client is a coroutine, so it holds memory and no thread. What blocks runs in a `Workers` pool.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from grpc import aio

from compeft_server.rpc.connection_guard import Connections

T = TypeVar("T")
START_S = 30.0
_lock = threading.Lock()
_loops: list[asyncio.AbstractEventLoop] = []


def event_loop() -> asyncio.AbstractEventLoop:
    """The process's loop, running; grpc.aio wants one for all servers."""
    with _lock:
        if not _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="grpc", daemon=True).start()
            _loops.append(loop)
        return _loops[0]


def on_loop(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Run a coroutine on the process's loop, from another thread."""
    return asyncio.run_coroutine_threadsafe(work, event_loop())


class Stopping:
    """A server that is ending its calls."""

    def __init__(self, done: Future[None]) -> None:
        self._done = done

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all calls have ended. Errors: TimeoutError."""
        self._done.result(timeout)
        return True


class BackgroundServer:
    """A grpc.aio server, whose connections are looked after by `connections`. `add` gives it its services, before `start`."""

    def __init__(
        self,
        options: Sequence[tuple[str, Any]],
        interceptors: Sequence["aio.ServerInterceptor[Any, Any]"],
        connections: Connections,
    ) -> None:
        async def make() -> "aio.Server":
            return aio.server(interceptors=list(interceptors), options=list(options), compression=grpc.Compression.NoCompression)

        self._server, self._connections = on_loop(make()).result(START_S), connections

    def add(self, register: Callable[["aio.Server"], object]) -> None:
        """Have `register` add a service to the server."""
        register(self._server)

    def add_insecure_port(self, address: str) -> int:
        """Listen without TLS; the port. Errors: RuntimeError."""
        return self._bound(self._server.add_insecure_port(address))

    def add_secure_port(self, address: str, credentials: grpc.ServerCredentials) -> int:
        """Listen with TLS; the port. Errors: RuntimeError."""
        return self._bound(self._server.add_secure_port(address, credentials))

    def _bound(self, port: int) -> int:
        self._connections.ports.add(port)
        return port

    def start(self) -> None:
        """Take calls from now on."""
        on_loop(self._server.start()).result(START_S)
        self._connections.start()

    def stop(self, grace: float | None) -> Stopping:
        """Take no more calls; those in progress have `grace` seconds to end."""
        self._connections.close()
        return Stopping(on_loop(self._server.stop(grace)))


async def in_pool(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """What `work` returns, done in a thread with the context variables of the caller. Errors: what `work` raises."""
    return await asyncio.get_running_loop().run_in_executor(pool, contextvars.copy_context().run, work)
