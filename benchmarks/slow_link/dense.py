"""The peer: the dense task vector as bf16 or fp32 in a plain gRPC stream, a mean in numpy, the mean back in a plain gRPC stream.

No manifest, no signature, no digest, no disk, no check: it costs what moving and averaging the numbers costs. No TLS, as on the other side.
"""

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.slow_link.stages import Arm
from benchmarks.slow_link.work import lora_layout, task_vector
from compeft_core import Vector

PART_BYTES = 256 * 2**10
OPTIONS = [("grpc.max_receive_message_length", 2**23), ("grpc.use_local_subchannel_pool", 1)]
SERVICE = "benchmark.Dense"
WIDTHS = {"bf16": 2, "fp32": 4}


def pack(vector: Vector, width: int) -> memoryview:
    """float32 -> the bytes that travel."""
    if width == 4:
        return memoryview(vector).cast("B")
    bits = vector.view(np.uint32)
    half: NDArray[np.uint16] = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return memoryview(half).cast("B")


def unpack(data: bytes | bytearray, width: int) -> Vector:
    """The bytes that travel -> float32."""
    if width == 4:
        return np.frombuffer(data, np.float32)
    return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)


def parts_of(data: memoryview) -> Iterator[bytes]:
    """Messages of a stream."""
    return (bytes(data[at : at + PART_BYTES]) for at in range(0, len(data), PART_BYTES))


class Mean:
    """What the server holds: the vectors that came in since the last mean, and that mean."""

    def __init__(self, width: int) -> None:
        self._width, self._lock = width, threading.Lock()
        self._arrived: list[bytearray] = []
        self._mean = memoryview(b"")

    def upload(self, parts: Iterator[bytes], _context: grpc.ServicerContext) -> bytes:
        """A client's vector, in parts."""
        whole = bytearray()
        for part in parts:
            whole += part
        with self._lock:
            self._arrived.append(whole)
        return b"here"

    def merge(self, _request: bytes, _context: grpc.ServicerContext) -> bytes:
        """Take the mean of all that is here."""
        total = unpack(self._arrived[0], self._width).copy()
        for data in self._arrived[1:]:
            total += unpack(data, self._width)
        total /= np.float32(len(self._arrived))
        self._arrived, self._mean = [], pack(total, self._width)
        return b"merged"

    def download(self, _request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        """The mean, in parts."""
        return parts_of(self._mean)


@dataclass(frozen=True, slots=True)
class Setting:
    """Parameters, bytes of each on the wire, which client this is."""

    size: int
    width: int
    number: int


class DenseClient:
    """One client of the peer."""

    def __init__(self, setting: Setting) -> None:
        self._setting, self._layout = setting, lora_layout(setting.size)
        self._state = np.zeros(self._layout.size, np.float32)

    def get_ready(self, address: str, number: int, _task: object) -> None:
        """A connection and a task vector."""
        self._vector = task_vector(self._layout, self._setting.number, number)
        self._channel = grpc.insecure_channel(address, OPTIONS)
        grpc.channel_ready_future(self._channel).result()

    def submit(self) -> float:
        """Pack and send."""
        self._channel.stream_unary(f"/{SERVICE}/Upload")(parts_of(pack(self._vector, self._setting.width)))
        return time.monotonic()

    def take_over(self) -> float:
        """Fetch and add."""
        data = bytearray()
        for part in self._channel.unary_stream(f"/{SERVICE}/Download")(b""):
            data += part
        self._state += unpack(data, self._setting.width)
        return time.monotonic()

    def state(self) -> str:
        """SHA-256."""
        return hashlib.sha256(self._state).hexdigest()


@contextmanager
def dense(size: int, kind: str, clients: int) -> Iterator[Arm]:
    """The peer's server, in a process of its own."""
    width, context = WIDTHS[kind], get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, width), daemon=True)
    process.start()
    address = here.recv()
    channel = grpc.insecure_channel(address, OPTIONS)
    try:
        settings = [Setting(size, width, number) for number in range(clients)]
        merge, pid = channel.unary_unary(f"/{SERVICE}/Merge"), process.pid
        assert pid is not None
        yield Arm(address, pid, DenseClient, settings, lambda _number: None, lambda _number: merge(b""))
    finally:
        channel.close()
        process.terminate()
        process.join()
        here.close()


def _serve(pipe: Connection, width: int) -> None:
    mean, server = Mean(width), grpc.server(ThreadPoolExecutor(16), options=OPTIONS)
    methods = {
        "Upload": grpc.stream_unary_rpc_method_handler(mean.upload),
        "Merge": grpc.unary_unary_rpc_method_handler(mean.merge),
        "Download": grpc.unary_stream_rpc_method_handler(mean.download),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    pipe.send(f"127.0.0.1:{port}")
    server.wait_for_termination()
