"""Serves the live page, on its own or beside the aggregator. Beyond loopback it needs a password, and TLS or a proxy with TLS."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from compeft_core.errors import InputError
from compeft_proto.clock import now_ms
from compeft_server.dashboard.app import create_app
from compeft_server.dashboard.metrics import Exposition
from compeft_server.dashboard.security import LOOPBACK_NAMES, Gate, Password, read_password
from compeft_server.dashboard.site import Site
from compeft_server.dashboard.slow_requests import PromptH11
from compeft_server.domain.price import Price
from compeft_server.ledger.ledger import Ledger
from compeft_server.reports.figures.provenance import own_public_keys

GRACE_S = 3


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where the page listens, and its TLS files. `behind_proxy`: a proxy in front of it speaks TLS with the browser."""

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    behind_proxy: bool = False

    @property
    def name(self) -> str:
        """The host without the brackets of an IPv6 address."""
        return self.host.strip("[]")

    @property
    def secure(self) -> bool:
        """Whether the browser gets here by HTTPS."""
        return self.behind_proxy or self.certificate is not None


def check_listen_address(address: ListenAddress, password: Password | None) -> None:
    """Errors: InputError if the page would be seen, or its password heard, by others than its operator."""
    if (address.certificate is None) != (address.key is None):
        raise InputError("TLS needs both --tls-cert and --tls-key")
    remote = address.name not in LOOPBACK_NAMES
    if (remote or address.behind_proxy) and password is None:
        raise InputError(f"a page on {address.host} needs a password: set one with `compeft dashboard-password --data DIR`")
    if remote and not address.secure:
        raise InputError(
            f"plain HTTP on {address.host} would show the password: give --tls-cert and --tls-key, or --behind-proxy"
        )


class Web:
    """The live page over one data directory, listening since it was made; `port` is where."""

    def __init__(
        self,
        data: Path,
        ledger: Ledger,
        address: ListenAddress,
        price: Price | None,
        exposition: Exposition,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        password = read_password(data)
        check_listen_address(address, password)
        gate = Gate(password, address.secure)
        site = Site(ledger, own_public_keys(data), gate, price, exposition.text, clock)
        self._socket = _listen(address)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            create_app(site, lambda: self._server.should_exit),
            http=PromptH11,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=address.certificate,
            ssl_keyfile=address.key,
        )
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C, or until `beside` is left."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    @contextmanager
    def beside(self) -> Iterator[int]:
        """Serve in a thread of its own as long as the context lasts; gives the port."""
        thread = threading.Thread(target=self.run, name="web", daemon=True)
        thread.start()
        try:
            yield self.port
        finally:
            self._server.should_exit = True
            thread.join(2 * GRACE_S)


def _listen(address: ListenAddress) -> socket.socket:
    try:
        return socket.create_server(
            (address.name, address.port), family=socket.AF_INET6 if ":" in address.name else socket.AF_INET
        )
    except OSError as error:
        raise InputError(f"cannot listen on {address.host}:{address.port}: {error.strerror}") from error
