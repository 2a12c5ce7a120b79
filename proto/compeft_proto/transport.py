"""The connection to an aggregator: a channel, and bidirectional streaming calls. Every failure is raised as a typed error.

gRPC owns the sockets; nothing here opens a file.
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from compeft_core.errors import FormatError, InputError
from compeft_proto.chunk_refs import CHUNK_BYTES
from compeft_proto.errors import TransferError, TruncatedError, WaitError, from_rpc
from compeft_proto.tracing import traced
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_proto.v1.expert_pb2 import ChunkRef

Sent = TypeVar("Sent")
Received = TypeVar("Received")
LOOPBACK = ("127.0.0.1:", "localhost:", "[::1]:")
DATA_BYTES = 256 * 2**10
"""Bytes of a chunk sent in one message."""
OUTBOX = 8
"""Messages that may wait to be sent in one call."""
STALL_S = 120.0
"""Seconds without a message after which a call is cancelled."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 15.0
MAX_MESSAGE_BYTES = 17 * 2**20
"""The largest manifest and its signature; chunks travel in smaller messages."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM bytes: the authority that signed the aggregator's certificate, and this client's own certificate and key."""

    authority: bytes
    certificate: bytes
    key: bytes


Tls = ClientTls
"""The name of ClientTls in earlier versions."""


def proxy_options(address: str) -> list[tuple[str, int]]:
    """Channel options that keep a connection to this machine away from the proxy that http_proxy names; none for other hosts."""
    return [("grpc.enable_http_proxy", 0)] if address.startswith(LOOPBACK) else []


def open_channel(address: str, tls: ClientTls | None) -> grpc.Channel:
    """A channel to host:port. Errors: InputError if the address is invalid, or not loopback and without TLS."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"invalid address {address[:80]!a}: expected HOST:PORT, such as aggregator.example:8443")
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.use_local_subchannel_pool", 1),
        *proxy_options(address),
    ]
    if tls is not None:
        credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
        return traced(grpc.secure_channel(address, credentials, options))
    if not address.startswith(LOOPBACK):
        raise InputError(f"aggregator {address} is not on this machine: give --tls-ca, --tls-cert and --tls-key")
    return traced(grpc.insecure_channel(address, options))


class Dialogue(Generic[Sent, Received]):
    """One bidirectional streaming call: `send` queues a message, `receive` returns the next, `newest` is the last received. A context
    manager; leaving it ends the call.

    At most OUTBOX messages wait to be sent, so a large transfer needs little memory. A call may take any time; it is
    cancelled after STALL_S seconds without a message.
    """

    def __init__(self, method: Callable[[Iterator[Sent]], Iterable[Received]], peer: str) -> None:
        self._method, self._peer = method, peer
        self._outbox: queue.Queue[Sent | None] = queue.Queue(OUTBOX)
        self._moved = time.monotonic()
        self._over = threading.Event()
        self.newest: Received | None = None

    def __enter__(self) -> "Dialogue[Sent, Received]":
        self._call: Any = self._method(self._outgoing())  # an iterator and a grpc.Call; the stubs know only one half
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After success, let the peer finish too; after an error, give the call up."""
        try:
            if kind is None:
                self._put(None)
                for _late in self._call:
                    pass
        except grpc.RpcError as error:
            raise from_rpc(error, self._peer) from error
        finally:
            self._over.set()
            self._call.cancel()

    def send(self, message: Sent) -> None:
        """Queue one message; waits while the peer is slow. Errors: as `receive`, if the call has ended."""
        if not self._put(message):
            self.receive()  # says why
            raise TruncatedError(f"aggregator {self._peer} ended the call in the middle: try again")

    def receive(self) -> Received:
        """The next message. Errors: the peer's typed refusal, UnreachableError, TruncatedError if the call ended instead."""
        try:
            message: Received = next(self._call)
        except StopIteration:
            raise TruncatedError(f"aggregator {self._peer} ended the call in the middle: try again") from None
        except grpc.RpcError as error:
            raise from_rpc(error, self._peer) from error
        self._moved, self.newest = time.monotonic(), message
        return message

    def _put(self, message: Sent | None) -> bool:
        while self._call.is_active():
            try:
                self._outbox.put(message, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def _outgoing(self) -> Iterator[Sent]:
        while not self._over.is_set():
            try:
                message = self._outbox.get(timeout=1.0)
            except queue.Empty:
                continue
            if message is None:
                return
            self._moved = time.monotonic()
            yield message

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            if time.monotonic() - self._moved > STALL_S:
                self._call.cancel()


SubmitDialogue = Dialogue[xp.SubmitRequest, xp.SubmitReply]


def upload(
    dialogue: SubmitDialogue,
    sealed: Envelope,
    refs: Sequence[ChunkRef],
    payload: bytes,
    tick: Callable[[int], None] = lambda _sent: None,
    head_size: int = 0,
) -> Envelope:
    """Offer a sealed manifest, send the chunks of `payload` that are asked for, return the sealed answer.

    `tick` is called with the number of bytes of each part sent; head_size: entries of the audit log that the client knows of.
    """
    starts = {ref.sha256: CHUNK_BYTES * number for number, ref in enumerate(refs)}

    def parts(wanted: xp.NeededChunk) -> Iterator[xp.SubmitRequest]:
        if wanted.sha256 not in starts:
            raise FormatError(f"the aggregator asks for chunk {wanted.sha256.hex()[:16]}, which the manifest does not name")
        start = starts[wanted.sha256]
        chunk = memoryview(payload)[start : start + CHUNK_BYTES]
        for at in range(wanted.offset, len(chunk), DATA_BYTES):
            part = bytes(chunk[at : at + DATA_BYTES])
            yield xp.SubmitRequest(data=part)
            tick(len(part))

    return offer(dialogue, xp.SubmitRequest(envelope=sealed, head_size=head_size), parts)


def offer(
    dialogue: SubmitDialogue, first: xp.SubmitRequest, parts: Callable[[xp.NeededChunk], Iterable[xp.SubmitRequest]]
) -> Envelope:
    """Send `first`, then the `parts` of each chunk that is asked for; the sealed answer.

    A chunk is sent once the one before it is confirmed, so no more than one is lost when the connection breaks.
    """
    dialogue.send(first)
    reply = dialogue.receive()
    if reply.HasField("needed"):
        for wanted in reply.needed.chunks:
            for part in parts(wanted):
                dialogue.send(part)
            if dialogue.receive().received != wanted.sha256:
                raise FormatError(f"the aggregator has not confirmed chunk {wanted.sha256.hex()[:16]}")
        reply = dialogue.receive()
    return reply.answer


def persist(attempt: Callable[[], Received], patience_s: float) -> Received:
    """`attempt` again and again while its transfer fails, for `patience_s` seconds without success; waits 0.2 s, then up to 15 s,
    and never less than the aggregator asks for.

    Errors: the last TransferError; everything else at once.
    """
    give_up, wait = time.monotonic() + patience_s, FIRST_WAIT_S
    while True:
        try:
            return attempt()
        except TransferError as error:
            asked = error.retry_after_ms / 1000 if isinstance(error, WaitError) else 0.0
            pause = max(asked, wait * random.uniform(0.5, 1.0))  # noqa: S311  # spreads clients out; no secret
            if time.monotonic() + pause > give_up:
                raise
        time.sleep(pause)
        wait = min(2 * wait, LONGEST_WAIT_S)
