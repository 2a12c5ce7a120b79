"""The connection to an aggregator: a channel, and one two-way call at a time. Every failure comes out as a typed error.

gRPC owns the sockets; nothing here opens a file.
"""

import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from compeft_core.errors import FormatError, InputError
from compeft_proto.errors import TruncatedError, from_rpc
from compeft_proto.manifest import chunks
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_proto.v1.expert_pb2 import ChunkRef

Sent = TypeVar("Sent")
Received = TypeVar("Received")
LOOPBACK = ("127.0.0.1:", "localhost:", "[::1]:")
DATA_BYTES = 256 * 2**10
"""Bytes of a chunk sent in one message."""
MAX_MESSAGE_BYTES = 17 * 2**20
"""The largest manifest and its signature; chunks travel in smaller messages."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM bytes: the authority that signed the aggregator's certificate, and this client's own certificate and key."""

    authority: bytes
    certificate: bytes
    key: bytes


def open_channel(address: str, tls: Tls | None) -> grpc.Channel:
    """A channel to host:port. Errors: InputError if the address is not loopback and there is no TLS."""
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if tls is not None:
        credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
        return grpc.secure_channel(address, credentials, options)
    if not address.startswith(LOOPBACK):
        raise InputError(f"aggregator {address} is not on this machine: give --tls-ca, --tls-cert and --tls-key")
    return grpc.insecure_channel(address, options)


class Dialogue(Generic[Sent, Received]):
    """One two-way call: send when there is something to say, receive what comes. A context manager; leaving it ends the call."""

    def __init__(self, method: Callable[[Iterator[Sent]], Iterable[Received]], peer: str) -> None:
        self._method, self._peer = method, peer
        self._outbox: queue.SimpleQueue[Sent | None] = queue.SimpleQueue()

    def __enter__(self) -> "Dialogue[Sent, Received]":
        self._call: Any = self._method(iter(self._outbox.get, None))  # an iterator and a grpc.Call; the stubs know only one half
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After success, let the peer finish too; after an error, give the call up."""
        self._outbox.put(None)
        if kind is not None:
            self._call.cancel()
            return
        try:
            for _late in self._call:
                pass
        except grpc.RpcError as error:
            raise from_rpc(error, self._peer) from error

    def send(self, message: Sent) -> None:
        """Queue one message."""
        self._outbox.put(message)

    def receive(self) -> Received:
        """The next message. Errors: the peer's typed refusal, UnreachableError, TruncatedError if the call ended instead."""
        try:
            message: Received = next(self._call)
        except StopIteration:
            raise TruncatedError(f"aggregator {self._peer} ended the call in the middle: try again") from None
        except grpc.RpcError as error:
            raise from_rpc(error, self._peer) from error
        return message


SubmitDialogue = Dialogue[xp.SubmitRequest, xp.SubmitReply]


def upload(dialogue: SubmitDialogue, sealed: Envelope, refs: Sequence[ChunkRef], payload: bytes) -> Envelope:
    """Offer a sealed manifest, send the chunks of `payload` that are asked for, return the sealed answer."""
    dialogue.send(xp.SubmitRequest(envelope=sealed))
    reply = dialogue.receive()
    if reply.HasField("needed"):
        held = dict(zip((ref.sha256 for ref in refs), chunks(payload), strict=True))
        for wanted in reply.needed.chunks:
            if wanted.sha256 not in held:
                raise FormatError(f"the aggregator asks for chunk {wanted.sha256.hex()[:16]}, which the manifest does not name")
            for data in _parts(held[wanted.sha256], wanted.offset):
                dialogue.send(xp.SubmitRequest(data=data))
        reply = dialogue.receive()
    return reply.answer


def _parts(chunk: bytes, offset: int) -> Iterator[bytes]:
    return (chunk[start : start + DATA_BYTES] for start in range(offset, len(chunk), DATA_BYTES))
