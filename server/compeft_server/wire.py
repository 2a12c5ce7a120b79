"""Wire bytes: what the kernel counted on a connection's socket, so TLS, HTTP/2 and gRPC framing are in; TCP/IP headers are not.

gRPC shows neither its sockets nor their counters. This finds the socket of a peer among the process's own descriptors and asks
Linux (TCP_INFO). Elsewhere the counts are 0 and `AVAILABLE` is False; the report says so.
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
        self._lock = threading.Lock()

    def connection(self, peer: str) -> "Connection":
        """The connection of a gRPC peer such as `ipv4:127.0.0.1:40312`; hold it until the call is over, then `settle`."""
        return Connection(self, peer)

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


class Connection:
    """A second handle on a peer's socket: it can be asked for its counters even after gRPC has closed its own."""

    def __init__(self, meter: WireMeter, peer: str) -> None:
        self._meter, self._peer = meter, peer
        self._socket = _find(peer) if AVAILABLE else None

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


def _find(peer: str) -> socket.socket | None:
    """The connected TCP socket of this process whose other end is `peer`, under a descriptor of its own."""
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
                continue
            found = socket.socket(fileno=os.dup(int(descriptor)))
        except OSError:
            continue
        if _peer_of(found) == peer:
            return found
        found.close()
    return None


def _peer_of(found: socket.socket) -> str:
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
