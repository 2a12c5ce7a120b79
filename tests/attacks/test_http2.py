"""Bytes below gRPC: what a stranger on the network sends to the exchange port, frame by frame. The server must go on, in bounded memory."""

import gzip
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress

import grpc
import pytest

from compeft_proto.v1 import exchange_pb2_grpc as rpc
from tests.faults.site import Site, until
from tests.rounds.conftest import EXPERT, genesis

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4
GROWTH = 192 * 2**20
"""Most bytes of memory that an attack may cost and leave."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An aggregator in a process of its own, on loopback without TLS: what TLS would hide is tried here."""
    made = Site(tmp_path_factory.mktemp("http2"))
    made.start()
    made.conductor().publish(genesis())
    yield made
    made.close()


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def header(name: str, value: bytes) -> bytes:
    """A header field without index, without Huffman (RFC 7541, section 6.2.2)."""
    return b"\0" + _length(len(name)) + name.encode() + _length(len(value)) + value


def _length(count: int) -> bytes:
    if count < 127:
        return bytes([count])
    rest, found = count - 127, bytearray([127])
    while rest >= 128:
        found.append(rest % 128 + 128)
        rest //= 128
    return bytes([*found, rest])


def call(path: bytes = b"/compeft.v1.ExpertExchange/Sync", more: bytes = b"") -> bytes:
    """The headers of a gRPC call."""
    fields = {":method": b"POST", ":scheme": b"http", ":path": path, ":authority": b"localhost", "te": b"trailers"}
    return b"".join(header(name, value) for name, value in fields.items()) + header("content-type", b"application/grpc") + more


def opened(site: Site) -> socket.socket:
    """A connection that has said hello."""
    made = socket.create_connection(("127.0.0.1", site.port), 10)
    made.sendall(PREFACE + frame(SETTINGS, 0, 0))
    made.settimeout(5)
    return made


def flood(site: Site, frames: Iterator[bytes], seconds: float = 1.5) -> int:
    """Send frames until the server hangs up, they end or the time is over; how many bytes it took."""
    sent, give_up = 0, time.monotonic() + seconds
    with opened(site) as connection, suppress(OSError):
        for piece in frames:
            connection.sendall(piece)
            sent += len(piece)
            if time.monotonic() > give_up:
                break
    return sent


def serves(site: Site) -> bool:
    """Whether a member gets an answer."""
    answer, _ = site.conductor().fetch(EXPERT, -1, 0, "", 0)
    return answer.statement.head_version == 0


def unharmed(site: Site, before: int) -> bool:
    """It serves, and what the attack took is given back."""
    until(lambda: site.resident_bytes() < before + GROWTH, 20)
    return serves(site) and site.resident_bytes() < before + GROWTH


def test_streams_that_are_opened_and_reset_at_once_cost_little(site: Site) -> None:
    """HTTP/2 rapid reset."""
    before, block = site.resident_bytes(), call()

    def frames() -> Iterator[bytes]:
        for first in range(1, 200_000, 200):
            yield b"".join(
                frame(HEADERS, END_HEADERS, n, block) + frame(RST_STREAM, 0, n, struct.pack(">I", 8))
                for n in range(first, first + 200, 2)
            )

    flood(site, frames())
    assert unharmed(site, before)


def test_thousands_of_streams_on_one_connection_are_refused(site: Site) -> None:
    before, block = site.resident_bytes(), call()
    flood(site, (frame(HEADERS, END_HEADERS, n, block) for n in range(1, 40_000, 2)))
    assert unharmed(site, before)


def test_headers_that_never_end_are_cut(site: Site) -> None:
    """CONTINUATION flood."""
    before, piece = site.resident_bytes(), header("x", os.urandom(8000).hex().encode())
    start = frame(HEADERS, 0, 1, call())

    def frames() -> Iterator[bytes]:
        yield start
        for _ in range(20_000):
            yield frame(CONTINUATION, 0, 1, piece)

    assert flood(site, frames()) < 320 * 2**20, "the server read on"
    assert unharmed(site, before)


@pytest.mark.parametrize("kind", [PING, SETTINGS], ids=["pings", "settings"])
def test_a_flood_of_small_frames_ends_the_connection_or_costs_little(site: Site, kind: int) -> None:
    before, body = site.resident_bytes(), bytes(8) if kind == PING else struct.pack(">HI", 4, 65_535)
    flood(site, (frame(kind, 0, 0, body) * 500 for _ in range(2_000)))
    assert unharmed(site, before)


def test_large_metadata_is_refused(site: Site) -> None:
    before = site.resident_bytes()
    with grpc.insecure_channel(f"127.0.0.1:{site.port}") as channel:
        for size in (20_000, 1_000_000):
            with pytest.raises(grpc.RpcError) as caught:
                list(rpc.ExpertExchangeStub(channel).Sync(iter(()), metadata=[("x-large", "a" * size)], timeout=10))
            assert caught.value.code() in (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.INTERNAL,
            )
    assert unharmed(site, before)


def test_a_compressed_message_that_expands_is_refused_before_it_fills_memory(site: Site) -> None:
    """One of 600 kB that would be 600 MB."""
    before, bomb = site.resident_bytes(), gzip.compress(bytes(600 * 2**20), 9)
    message = b"\1" + struct.pack(">I", len(bomb)) + bomb
    for _ in range(3):
        with opened(site) as connection, suppress(OSError):
            connection.sendall(frame(HEADERS, END_HEADERS, 1, call(more=header("grpc-encoding", b"gzip"))))
            for at in range(0, len(message), 16_000):
                connection.sendall(frame(DATA, END_STREAM if at + 16_000 >= len(message) else 0, 1, message[at : at + 16_000]))
            time.sleep(1)
    assert site.peak_bytes() < before + 2 * GROWTH
    assert unharmed(site, before)


def test_a_message_of_millions_of_empty_parts_costs_no_more_than_its_bytes(site: Site) -> None:
    """An envelope of 8 million signatures, 2 bytes each, in 16 MB: as messages in memory they would be a hundred times that."""
    before = site.resident_bytes()
    signatures = b"\x1a\x00" * (8 * 2**20 - 64)
    envelope = b"\x0a" + _varint(len(signatures)) + signatures
    with grpc.insecure_channel(f"127.0.0.1:{site.port}") as channel:
        for method, message in (("Sync", envelope), ("Submit", envelope), ("Conduct", signatures)):
            send = channel.stream_stream(f"/compeft.v1.ExpertExchange/{method}")
            for _ in range(3):
                with pytest.raises(grpc.RpcError):
                    list(send(iter([message]), timeout=60))
    assert site.peak_bytes() < before + 2 * GROWTH
    assert unharmed(site, before)


def test_health_watches_of_one_connection_are_bounded(site: Site) -> None:
    before = site.resident_bytes()
    with grpc.insecure_channel(f"127.0.0.1:{site.port}") as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        calls = [watch(b"") for _ in range(4_000)]
        time.sleep(3)
        answered = sum(_answered(one) for one in calls)
        for one in calls:
            one.cancel()
    assert 0 < answered <= 256
    assert unharmed(site, before)


def _answered(one: grpc.Call) -> bool:
    return one.is_active()


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 128:
        found.append(number % 128 + 128)
        number //= 128
    return bytes([*found, number])
