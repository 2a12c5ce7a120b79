"""Attacks beside honest rounds: each is a second of what a stranger, or a member that turned, sends to the exchange port."""

import os
import random
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import grpc

from compeft_proto import envelope as dsse
from compeft_proto.clock import now_ms
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import expert_pb2 as pb

PAUSE_S, HOLD_S = 0.3, 1.0
Attack = Callable[["Attackers"], None]


class Attackers:
    """Somebody who tries something all the time, in a thread, against one port of this machine. `member` is a key that is enrolled."""

    def __init__(self, port: int, member: SigningKey, seed: int) -> None:
        self.port, self.member, self.tried = port, member, Counter[str]()
        self._random, self._over = random.Random(seed), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Attackers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)

    def hold(self) -> None:
        """Stay for a moment."""
        self._over.wait(HOLD_S)

    def send(self, method: str, message: bytes) -> None:
        """One call with these bytes as its only message."""
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.stream_stream(f"/compeft.v1.ExpertExchange/{method}")
            with suppress(grpc.RpcError):
                list(call(iter([message]), timeout=5))

    def _run(self) -> None:
        while not self._over.wait(PAUSE_S * self._random.random()):
            name = self._random.choice(sorted(ATTACKS))
            with suppress(OSError, grpc.RpcError):
                ATTACKS[name](self)
            self.tried[name] += 1


def silent_calls(self: Attackers) -> None:
    """A hundred calls that say nothing."""
    until = threading.Event()

    def nothing() -> Iterator[bytes]:
        until.wait()
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        calls = [channel.stream_stream("/compeft.v1.ExpertExchange/Sync")(nothing()) for _ in range(100)]
        self.hold()
        for call in calls:
            call.cancel()
        until.set()


def silent_connections(self: Attackers) -> None:
    """A hundred connections that say nothing."""
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", self.port), 2))
        self.hold()


def noise(self: Attackers) -> None:
    """Bytes that are no protocol."""
    with socket.create_connection(("127.0.0.1", self.port), 2) as connection:
        connection.sendall(os.urandom(65_536))


def parts(self: Attackers) -> None:
    """An envelope of a million signatures."""
    self.send("Submit", b"\x0a\x80\x80\x80\x01" + b"\x1a\x00" * 2**20)


def refusals(self: Attackers) -> None:
    """A member asks for what does not exist, again and again."""
    for _ in range(20):
        request = pb.SyncRequest(expert="nope", keyid=self.member.keyid, nonce=secrets.token_bytes(16), issued_at_ms=now_ms())
        sealed = dsse.seal(self.member, dsse.SYNC_REQUEST, request)
        self.send("Sync", xp.SyncCall(envelope=sealed).SerializeToString())


def strangers(self: Attackers) -> None:
    """Messages that nobody enrolled has signed."""
    for _ in range(20):
        sealed = dsse.seal(new_key(), dsse.UPDATE, pb.UpdateManifest(expert="sentiment"))
        self.send("Submit", xp.SubmitRequest(envelope=sealed).SerializeToString())


ATTACKS: dict[str, Attack] = {
    attack.__name__.replace("_", " "): attack for attack in (silent_calls, silent_connections, noise, parts, refusals, strangers)
}
