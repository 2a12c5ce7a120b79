"""Asks an aggregator whether it serves, over the very address and TLS that its clients use. Nothing is signed, and nothing is changed.

Behind mutual TLS a question needs a certificate. On the aggregator's own machine the authority makes one that is held in memory for
this one connection; a certificate alone opens nothing but health checks.
"""

import json
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from compeft_core.errors import CompeftError, InputError
from compeft_proto.errors import from_rpc
from compeft_proto.site_layout import FILES, INDEX
from compeft_proto.transport import ClientTls, open_channel, persist
from compeft_server.identity import authority_files
from compeft_server.identity import certificate_authority as ca
from compeft_server.private_files import read_file, read_private

SERVING = health_pb2.HealthCheckResponse.SERVING


class NotServingError(CompeftError):
    """The aggregator answers that it does not serve."""

    code = "not_serving"


def ask(address: str, service: str, tls: ClientTls | None, timeout_s: float) -> None:
    """Return if the service at host:port serves. Errors: UnreachableError if nobody answers in time, NotServingError if it says no."""
    with open_channel(address, tls) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout_s, wait_for_ready=False
            )
        except grpc.RpcError as error:
            raise from_rpc(error, address) from error
    if reply.status != SERVING:
        raise NotServingError(
            f"{address} answers {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}, expected SERVING"
        )


def ask_until(address: str, service: str, tls: ClientTls | None, timeout_s: float, patience_s: float) -> None:
    """Repeat `ask` while nobody answers, for `patience_s` seconds. Errors: as `ask`."""
    persist(lambda: ask(address, service, tls, timeout_s), patience_s)


def own_tls(data: Path, now_ms: int) -> ClientTls | None:
    """What the aggregator's own authority lets in, made now and kept nowhere; None if the data directory has no authority."""
    if not authority_files.has_authority(data):
        return None
    trust = authority_files.load(data)
    key = ca.new_key()
    return ClientTls(trust.bundle, ca.pem(ca.issue_member(trust.current, "health", key.public_key(), now_ms)), ca.key_pem(key))


def site_tls(site: Path) -> tuple[str, ClientTls | None]:
    """A member's aggregator and TLS, as its site folder says. Errors: InputError if it is invalid."""
    try:
        address = str(json.loads(read_file(site / INDEX))["aggregator"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{site / INDEX} is damaged: enrol again with `compeft enroll`") from error
    authority, own = site / FILES["tls-ca"], site / FILES["tls-cert"]
    if not own.exists():
        return address, None
    pem = read_private(own)
    return address, ClientTls(read_file(authority), pem, pem)


def files_tls(authority: Path, certificate: Path, key: Path) -> ClientTls:
    """TLS of an operator's own files. Errors: InputError, ForbiddenError if others may read the key."""
    return ClientTls(read_file(authority), read_file(certificate), read_private(key))
