"""Ends connections that gRPC would keep: those that never make a call, those above a cap, and those of revoked members.

gRPC shows neither its sockets nor their owners. As `wire_meter` does, this finds them among the process's own descriptors (Linux), and
shuts the socket down; gRPC then closes the connection as if its client had gone. Elsewhere only gRPC's own deadline for handshakes holds.
"""

import os
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from compeft_server.rpc.wire_meter import AVAILABLE, peer_of

log = structlog.get_logger()
SILENT_S = 10.0
"""Seconds after which a connection without any call is ended."""
SILENT_PER_HOST = 256
"""Most connections of one host that have made no call; above, the oldest are ended at once."""
EVERY_S, REFRESH_S = 0.25, 1.0
"""How often connections are looked at, and who is revoked."""
RESERVED_DESCRIPTORS = 256
"""Descriptors that connections may not take: files, databases, the live page."""
LOW_LIMIT = 4096


@dataclass(slots=True)
class Connections:
    """The connections to the ports of one server. `revoked_names` asks the ledger."""

    revoked_names: Callable[[], frozenset[str]] = frozenset
    ports: set[int] = field(default_factory=set)
    _first_seen: dict[str, float] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _revoked: frozenset[str] = frozenset()
    _stop: threading.Event = field(default_factory=threading.Event)

    def called(self, peer: str, name: str) -> None:
        """Note that a call came over the connection of `peer`, by the certificate of `name`."""
        self._names[peer] = name

    def is_revoked(self, name: str) -> bool:
        """Whether this is the name of a revoked member, as of REFRESH_S ago."""
        return name in self._revoked

    def start(self) -> None:
        """Look at them from now on."""
        self._revoked = self.revoked_names()
        threading.Thread(target=self._run, name="connections", daemon=True).start()

    def close(self) -> None:
        """Look at them no more."""
        self._stop.set()

    def _run(self) -> None:
        refreshed, pause = time.monotonic(), EVERY_S
        while not self._stop.wait(pause):
            started = time.monotonic()
            if started - refreshed >= REFRESH_S:
                refreshed = started
                with suppress(Exception):  # the database may be away: who was revoked before, still is
                    self._revoked = self.revoked_names()
            if AVAILABLE:
                self.sweep(started)
            pause = max(EVERY_S, 20 * (time.monotonic() - started))

    def sweep(self, now_s: float) -> None:
        """End what should not go on. `now_s` is a steady clock."""
        found = dict(self._established())
        self._first_seen = {peer: self._first_seen.get(peer, now_s) for peer in found}
        self._names = {peer: name for peer, name in self._names.items() if peer in found}
        over = self._too_many() | {peer for peer, name in self._names.items() if name in self._revoked}
        over |= {peer for peer in self._silent() if now_s - self._first_seen[peer] > SILENT_S}
        for peer in over:
            _shut(found[peer], peer)
        if over:
            log.info("connections ended", count=len(over), of=len(found))

    def _silent(self) -> list[str]:
        """Connections that have made no call, the oldest first."""
        return sorted(self._first_seen.keys() - self._names.keys(), key=lambda peer: self._first_seen[peer])

    def _too_many(self) -> set[str]:
        silent, hosts, over = self._silent(), Counter[str](), set[str]()
        allowed = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)  # of each port; two ports share the descriptors
        for number, peer in enumerate(reversed(silent)):
            host = peer.rpartition(":")[0]
            hosts[host] += 1
            if number >= allowed or hosts[host] > SILENT_PER_HOST:
                over.add(peer)
        return over

    def _established(self) -> Iterator[tuple[str, int]]:
        for descriptor in _descriptors():
            if peer := _peer_at(descriptor, self.ports):
                yield peer, descriptor


def most_connections() -> int:
    """How many connections a server may have, by the limit of descriptors, which is raised as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft < LOW_LIMIT:
        log.warning(
            "few descriptors", limit=soft, wanted=LOW_LIMIT, mend="raise the limit of open files (LimitNOFILE, ulimit -n)"
        )
    return int(max(64, min(soft, 2**20) - RESERVED_DESCRIPTORS))


def _descriptors() -> Iterator[int]:
    """Open descriptors of this process; where none is left to list them with, all that there may be."""
    try:
        yield from map(int, os.listdir("/proc/self/fd"))
    except OSError:
        yield from range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 2**16))


def _peer_at(descriptor: int, ports: set[int]) -> str:
    """The other end of the connection under this descriptor, which is only borrowed; empty unless it is connected to one of the ports."""
    try:
        borrowed = socket.socket(fileno=descriptor)
    except OSError:
        return ""
    try:
        if borrowed.family not in (socket.AF_INET, socket.AF_INET6) or borrowed.getsockname()[1] not in ports:
            return ""
        return peer_of(borrowed)
    except OSError:
        return ""
    finally:
        borrowed.detach()


def _shut(descriptor: int, peer: str) -> None:
    """Shut a connection down. It is looked at once more: its descriptor may be another's by now."""
    try:
        borrowed = socket.socket(fileno=descriptor)
    except OSError:
        return
    try:
        if peer_of(borrowed) == peer:
            with suppress(OSError):
                borrowed.shutdown(socket.SHUT_RDWR)
    finally:
        borrowed.detach()
