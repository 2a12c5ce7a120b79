"""A client's certificate: the request for one, the file that holds it, and the way to an authority known by its fingerprint only."""

import hashlib
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from compeft_client.durable_files import read_private
from compeft_core.errors import InputError
from compeft_proto.errors import TrustError, UnreachableError, from_rpc
from compeft_proto.invitation import split_address
from compeft_proto.transport import proxy_options
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_proto.v1 import enrolment_pb2_grpc as rpc

WAIT_S = 30.0
DUE = 1 / 3
"""A certificate is renewed once less than this part of its life is left."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A fresh P-256 key in PEM, and the request in DER for a certificate of it; both empty without TLS."""

    key: bytes = field(default=b"", repr=False)
    request: bytes = b""


NO_CERTIFICATE = Wanted()


def new_request(name: str) -> Wanted:
    """A fresh key and a request for its certificate. The aggregator does not look at `name`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return Wanted(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), request.public_bytes(Encoding.DER))


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file that holds its key too. Errors: InputError, ForbiddenError if others may read it."""
    try:
        return x509.load_pem_x509_certificate(read_private(path))
    except ValueError as error:
        raise InputError(f"{path} holds no certificate in PEM") from error


def is_due(certificate: x509.Certificate, now_ms: int) -> bool:
    """Whether so little of its life is left that it should be renewed."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return end.timestamp() - now_ms / 1000 < DUE * (end - start).total_seconds()


def check_lasting(pem: bytes, name: str, now_ms: int) -> None:
    """The certificate in file `name` has not ended. Errors: InputError, which says what to do."""
    try:
        end = x509.load_pem_x509_certificate(pem).not_valid_after_utc
    except ValueError as error:
        raise InputError(f"{name} holds no certificate in PEM") from error
    if end.timestamp() * 1000 < now_ms:
        raise InputError(f"certificate {name} ended on {end:%Y-%m-%d}: the operator must revoke this member and invite it again")


def check_certificate(pem: bytes, request: bytes, authorities: bytes) -> None:
    """A granted certificate is for the key of our request, and authorities come with it. Errors: TrustError."""
    try:
        granted = x509.load_pem_x509_certificate(pem).public_key()
        x509.load_pem_x509_certificates(authorities)
    except ValueError as error:
        raise TrustError("the aggregator granted no certificate in PEM") from error
    if granted != x509.load_der_x509_csr(request).public_key():
        raise TrustError("the aggregator granted a certificate for another key than ours")


def pinned_authority(address: str, fingerprint: bytes) -> bytes:
    """The authority's certificate in PEM, from an aggregator that is a stranger yet, if it has this fingerprint.

    The server's own certificate is fetched unchecked, and only used to ask for the authority's: nothing secret is said. The next
    connection must be to a server that this authority certified. Errors: UnreachableError, TrustError, InputError.
    """
    leaf = _shown(address)
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(leaf), proxy_options(address)) as channel:
        try:
            reply = rpc.EnrolmentStub(channel).ShowAuthority(ep.AuthorityRequest(), timeout=WAIT_S)
        except grpc.RpcError as error:
            raise from_rpc(error, address) from error
    for der in reply.certificates:
        if hashlib.sha256(der).digest() == fingerprint:
            return ssl.DER_cert_to_PEM_cert(der).encode()
    raise TrustError(
        f"{address} is not the aggregator of this invitation: its authority is not {fingerprint.hex()[:16]}; nothing secret was sent"
    )


def _shown(address: str) -> bytes:
    """The certificate in PEM that a server shows, unchecked but for its name. Errors: UnreachableError, InputError."""
    host, port = split_address(address)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, port), WAIT_S) as plain, context.wrap_socket(plain, server_hostname=host) as wrapped:
            der = wrapped.getpeercert(binary_form=True) or b""
    except OSError as error:
        raise UnreachableError(
            f"aggregator {address} cannot be reached: {error}; is it `compeft serve --enroll-port`?"
        ) from error
    names = [name for name in map(str, (n.value for n in _names(der))) if name.isprintable()]
    if host not in names:
        raise InputError(f"the aggregator at {address} has a certificate for {', '.join(names) or 'no name'}, not for {host}")
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _names(der: bytes) -> list[x509.GeneralName]:
    try:
        return list(x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound):
        return []
