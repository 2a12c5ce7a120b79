"""Wire bytes: what the kernel counted on a connection's socket, so TLS, HTTP/2 and gRPC framing are in; TCP/IP headers are not.

gRPC shows neither its sockets nor their counters. This finds the socket of a peer among the process's own descriptors and asks
Linux (TCP_INFO). Elsewhere the counts are 0 and `AVAILABLE` is False; the report says so.

Invariant: no descriptor of anything but a socket is ever closed, not even a copy of it. Closing any descriptor of a file drops all of
the process's POSIX locks on that file, and the ledger is one: another process would take it for its own and delete its newest facts.
"""

import os
import socket
import struct
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

AVAILABLE = hasattr(socket, "TCP_INFO") and Path("/proc/self/fd").exists()
MAX_PEERS = 65536
_TCP_INFO_BYTES = 216
_RECEIVED_AT, _SENT_AT, _RETRANSMITTED_AT = 128, 200, 208  # struct tcp_info of linux/tcp.h, since Linux 4.19


@dataclass(frozen=True, slots=True)
class Wire:
    """Bytes received and sent."""

    received: int = 0
    sent: int = 0


class WireMeter:
    """Counts per call: the bytes on the peer's connection since the end of its previous call."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, Wire] = OrderedDict()
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    def connection(self, peer: str) -> "MeteredConnection":
        """The connection of a gRPC peer such as `ipv4:127.0.0.1:40312`; hold it until the call is over, then `settle`."""
        return MeteredConnection(self, peer)

    def find(self, peer: str) -> socket.socket | None:
        """The connected TCP socket of this process whose other end is `peer`, under a descriptor of its own.

        All sockets are looked through only for a peer whose descriptor is not known, or has become another's.
        """
        found = _socket_at(self._descriptors.get(peer, -1), peer)
        if found is None:
            self._descriptors = _peers_of_this_process()
            found = _socket_at(self._descriptors.get(peer, -1), peer)
        return found

    def since_last(self, peer: str, now: Wire) -> Wire:
        """Bytes since the last time; a smaller counter means the port belongs to a new connection."""
        with self._lock:
            last = self._last.pop(peer, Wire())
            self._last[peer] = now
            while len(self._last) > MAX_PEERS:
                self._last.popitem(last=False)
        if now.received < last.received or now.sent < last.sent:
            last = Wire()
        return Wire(now.received - last.received, now.sent - last.sent)


class MeteredConnection:
    """A second handle on a peer's socket: it can be asked for its counters even after gRPC has closed its own."""

    def __init__(self, meter: WireMeter, peer: str) -> None:
        self._meter, self._peer = meter, peer
        self._socket = meter.find(peer) if AVAILABLE else None

    def settle(self) -> Wire:
        """Bytes of this call, once it is over; lets go of the socket."""
        if self._socket is None:
            return Wire()
        with self._socket:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        self._socket = None
        if len(info) < _TCP_INFO_BYTES:
            return Wire()
        (received,) = struct.unpack_from("<Q", info, _RECEIVED_AT)
        sent, again = struct.unpack_from("<QQ", info, _SENT_AT)
        return self._meter.since_last(self._peer, Wire(received, sent - again))


def _peers_of_this_process() -> dict[str, int]:
    """The descriptors of all connected TCP sockets by the name of their other end."""
    peers = {_peer_at(descriptor): descriptor for descriptor in map(int, os.listdir("/proc/self/fd"))}
    peers.pop("", None)
    return peers


def _peer_at(descriptor: int) -> str:
    """The other end of the socket under this descriptor, which is only borrowed; empty if it is closed or no socket."""
    try:
        borrowed = socket.socket(fileno=descriptor)
    except OSError:
        return ""
    try:
        return peer_of(borrowed)
    finally:
        borrowed.detach()


def _socket_at(descriptor: int, peer: str) -> socket.socket | None:
    """The socket under this descriptor, under a second one, if its other end is `peer`."""
    if descriptor < 0 or _peer_at(descriptor) != peer:
        return None
    try:
        found = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return None  # closed since it was looked at; if it is another file's by now, the copy stays open: see the invariant
    if peer_of(found) != peer:
        found.close()
        return None
    return found


def peer_of(found: socket.socket) -> str:
    """The other end of a connected TCP socket as gRPC names it; empty for anything else."""
    try:
        name = found.getpeername()
    except OSError:
        return ""
    if found.family == socket.AF_INET:
        return f"ipv4:{name[0]}:{name[1]}"
    if found.family == socket.AF_INET6:
        mapped = name[0].removeprefix("::ffff:")
        return f"ipv4:{mapped}:{name[1]}" if mapped != name[0] else f"ipv6:%5B{name[0]}%5D:{name[1]}"
    return ""
