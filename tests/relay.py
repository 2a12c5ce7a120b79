"""A TCP proxy, for tests of bad links. Here every byte passes; a subclass says what happens to the bytes of a connection instead."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress


class Relay:
    """Passes connections on to `target`, each way in a thread of its own, until it is closed."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open = [self._listener]
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more, and end what is open."""
        for one in self._open:
            end(one)
            one.close()

    def up(self) -> Callable[[socket.socket, socket.socket], None]:
        """How the next connection passes bytes towards the target."""
        return pass_on

    def down(self) -> Callable[[socket.socket, socket.socket], None]:
        """How the next connection passes bytes back."""
        return pass_on

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(self._target)
                self._open += [client, server]
                for way, source, sink in ((self.up(), client, server), (self.down(), server, client)):
                    threading.Thread(target=_quietly, args=(way, source, sink), daemon=True).start()


def pass_on(source: socket.socket, sink: socket.socket) -> None:
    """Every byte, as it comes."""
    while data := source.recv(65536):
        sink.sendall(data)


def end(one: socket.socket) -> None:
    """End a connection, if it has not ended."""
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def _quietly(way: Callable[[socket.socket, socket.socket], None], source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        way(source, sink)
