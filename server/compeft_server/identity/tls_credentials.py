"""The aggregator's TLS credentials, read again for every connection: a renewed certificate needs no restart.

Where reading fails (a file half copied, a wrong mode), the handshake goes on with what was read last, and the log says so.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from compeft_core.errors import CompeftError
from compeft_server.identity import authority_files
from compeft_server.identity import certificate_authority as ca
from compeft_server.private_files import read_file, read_private

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tls:
    """Mutual TLS: PEM files of the server's certificate and key, and of the authority that signed the clients' certificates."""

    certificate: Path
    key: Path
    client_authority: Path


@dataclass(frozen=True, slots=True)
class Shown:
    """PEM bytes: the server's key and certificate chain, and the authorities behind the clients' certificates."""

    key: bytes
    chain: bytes
    client_authorities: bytes


def from_files(tls: Tls) -> Shown:
    """Credentials from the operator's own files. Errors: InputError, ForbiddenError if others may read the key."""
    return Shown(read_private(tls.key), read_file(tls.certificate), read_file(tls.client_authority))


def from_authority(data: Path, now_ms: int) -> Shown:
    """Credentials from the aggregator's own authority; the server's certificate is renewed when it is due. Errors: as `from_files`."""
    trust = authority_files.load(data)
    if ca.is_due(authority_files.server_certificate(data), now_ms):
        authority_files.renew_server(data, now_ms)
    pem = read_private(data / authority_files.FOLDER / authority_files.SERVER)
    return Shown(pem, pem, trust.bundle)


def server_credentials(read: Callable[[], Shown], *, ask_clients: bool) -> grpc.ServerCredentials:
    """Credentials for gRPC over `read`. ask_clients: a client must show a certificate. Errors: those of the first `read`."""
    shown, lock = read(), threading.Lock()

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        with lock:
            try:
                found = read()
            except CompeftError as error:
                log.warning("certificate not read", reason=str(error))
                return None
            if found == shown:
                return None
            shown = found
            log.info("certificate replaced")
            return _configuration(shown, ask_clients)

    first = _configuration(shown, ask_clients)
    return grpc.dynamic_ssl_server_credentials(first, renewed, ask_clients)  # type: ignore[arg-type]  # None: go on with what there is


def _configuration(shown: Shown, ask_clients: bool) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(shown.key, shown.chain)], shown.client_authorities if ask_clients else None
    )
