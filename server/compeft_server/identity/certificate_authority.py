"""The aggregator's own certificate authority, as pure functions of x509: bytes, names and the time in, certificates out. No files.

Keys are ECDSA P-256. Every certificate ends: the authority's after 5 years, others after one, and none outlives the authority
that signed it. A request is asked for its public key only; what else it says is not copied.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from compeft_core.errors import FormatError, InputError

AUTHORITY_LIFE = timedelta(days=5 * 365)
LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST = re.compile(rf"(?=.{{1,253}}$)(\*\.)?({LABEL}\.)*{LABEL}")
"""A host name in ASCII (RFC 1123), with underscores, as container networks have them."""
MEMBER_LIFE = SERVER_LIFE = timedelta(days=365)
BACKDATED = timedelta(minutes=5)
"""Clocks may differ."""
MAX_REQUEST_BYTES = 4096
DUE = 1 / 3
"""A certificate is renewed once less than this part of its life is left."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate that signs others, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh key for a certificate."""
    return ec.generate_private_key(ec.SECP256R1())


def new_authority(name: str, now_ms: int) -> Authority:
    """A self-signed authority. It may certify one more authority below it: its own successor (`cross_sign`)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"{name} ComPEFT authority {x509.random_serial_number() % 2**32:08x}")
    builder = _builder(subject, subject, key.public_key(), now_ms, _when(now_ms) + AUTHORITY_LIFE)
    return Authority(_authority_extensions(builder, key.public_key(), 1).sign(key, hashes.SHA256()), key)


def cross_sign(old: Authority, new: x509.Certificate, now_ms: int) -> x509.Certificate:
    """The new authority as the old one certifies it: who believes the old one only, believes what the new one signs."""
    key = _p256(new.public_key())
    end = min(old.certificate.not_valid_after_utc, new.not_valid_after_utc)
    builder = _builder(new.subject, old.certificate.subject, key, now_ms, end)
    return _authority_extensions(builder, key, 0).sign(old.key, hashes.SHA256())


def issue_server(authority: Authority, hosts: Sequence[str], now_ms: int) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A server's certificate for these DNS names and IP addresses, with a fresh key. Errors: InputError for what is neither."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    builder = _leaf(authority, hosts[0], key.public_key(), SERVER_LIFE, now_ms).add_extension(names, critical=False)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    return builder.add_extension(usage, critical=False).sign(authority.key, hashes.SHA256()), key


def issue_member(authority: Authority, name: str, public: ec.EllipticCurvePublicKey, now_ms: int) -> x509.Certificate:
    """A member's certificate for the key of its request."""
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = _leaf(authority, name, public, MEMBER_LIFE, now_ms).add_extension(usage, critical=False)
    return builder.sign(authority.key, hashes.SHA256())


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a PKCS#10 request in DER whose own signature proves that the sender holds it. Errors: FormatError."""
    if not 0 < len(request) <= MAX_REQUEST_BYTES:
        raise FormatError(f"certificate request of {len(request)} bytes, expected 1 to {MAX_REQUEST_BYTES}")
    try:
        parsed = x509.load_der_x509_csr(request)
        valid = parsed.is_signature_valid
        key = parsed.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FormatError(f"{len(request)} bytes are not a certificate request (PKCS#10 in DER)") from error
    if not valid:
        raise FormatError("the certificate request is not signed by the key in it")
    return _p256(key)


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate in DER."""
    return certificate.fingerprint(hashes.SHA256())


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names and IP addresses that a server's certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in names)


def is_due(certificate: x509.Certificate, now_ms: int) -> bool:
    """Whether the certificate should be renewed now."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return end - _when(now_ms) < DUE * (end - start)


def ends_ms(certificate: x509.Certificate) -> int:
    """End of the certificate's validity, in ms since 1970."""
    return int(certificate.not_valid_after_utc.timestamp() * 1000)


def pem(*certificates: x509.Certificate) -> bytes:
    """Certificates in PEM, one after the other."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS#8 in PEM, not encrypted: the file's permissions guard it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificates_from_pem(data: bytes, name: str) -> list[x509.Certificate]:
    """The certificates in file `name`, in their order. Errors: InputError."""
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise InputError(f"{name} holds no certificate in PEM") from error


def key_from_pem(data: bytes, name: str) -> ec.EllipticCurvePrivateKey:
    """The private key in file `name`. Errors: InputError if it holds none of ECDSA."""
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"{name} holds no private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{name} holds a {type(key).__name__}, expected ECDSA")
    return key


def _leaf(
    authority: Authority, name: str, public: ec.EllipticCurvePublicKey, life: timedelta, now_ms: int
) -> x509.CertificateBuilder:
    end = min(_when(now_ms) + life, authority.certificate.not_valid_after_utc)
    builder = _builder(_name(name), authority.certificate.subject, public, now_ms, end)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    return builder.add_extension(issuer, critical=False).add_extension(_usage(authority=False), critical=True)


def _authority_extensions(
    builder: x509.CertificateBuilder, public: ec.EllipticCurvePublicKey, path_length: int
) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    return builder.add_extension(_usage(authority=True), critical=True)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now_ms: int, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(_when(now_ms) - BACKDATED).not_valid_after(end)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if not HOST.fullmatch(host):
        raise InputError(f"{host[:80]!a} is neither a host name nor an IP address")
    return x509.DNSName(host)


def _p256(key: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise FormatError(f"certificate request with a {type(key).__name__}, expected ECDSA P-256")
    return key


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64] or "compeft")])


def _when(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms // 1000, UTC)
