"""The authority's certificates: what they are for, how long, and what a request may not bring in."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from compeft_core.errors import FormatError, InputError
from compeft_server.identity import certificate_authority as ca

NOW = 1_800_000_000_000
WHEN = datetime.fromtimestamp(NOW / 1000, UTC)
AUTHORITY = ca.new_authority("agg.example", NOW)


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, name: str = "x") -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    wish = x509.BasicConstraints(ca=True, path_length=None)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(wish, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def verifier(*roots: x509.Certificate, at: datetime = WHEN) -> verification.PolicyBuilder:
    return verification.PolicyBuilder().store(verification.Store(list(roots))).time(at)


def test_a_servers_certificate_is_for_its_names_and_ends() -> None:
    certificate, _ = ca.issue_server(AUTHORITY, ["agg.example", "192.0.2.7"], NOW)
    assert ca.hosts_of(certificate) == ("agg.example", "192.0.2.7")
    assert certificate.not_valid_after_utc == WHEN + timedelta(days=365)
    name = x509.DNSName("agg.example")
    verifier(AUTHORITY.certificate).build_server_verifier(name).verify(certificate, [])
    with pytest.raises(verification.VerificationError):
        verifier(AUTHORITY.certificate, at=WHEN + timedelta(days=366)).build_server_verifier(name).verify(certificate, [])


def test_what_a_request_says_beside_its_key_is_not_copied() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = ca.issue_member(AUTHORITY, "berlin", ca.requested_key(csr(key, "conductor")), NOW)
    assert certificate.subject.rfc4514_string() == "CN=berlin"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.public_key() == key.public_key()


def test_a_certificate_does_not_outlive_its_authority() -> None:
    late = NOW + int(ca.AUTHORITY_LIFE.total_seconds() - 86_400) * 1000
    certificate, _ = ca.issue_server(AUTHORITY, ["a"], late)
    assert certificate.not_valid_after_utc == AUTHORITY.certificate.not_valid_after_utc


def test_who_believes_the_old_authority_believes_what_the_new_one_signs() -> None:
    new = ca.new_authority("agg.example", NOW)
    certificate, _ = ca.issue_server(new, ["agg.example"], NOW)
    crossed = ca.cross_sign(AUTHORITY, new.certificate, NOW)
    for root in (AUTHORITY.certificate, new.certificate):
        verifier(root).build_server_verifier(x509.DNSName("agg.example")).verify(certificate, [crossed])


@pytest.mark.parametrize("size", [0, 5000])
def test_a_request_of_no_or_many_bytes_is_refused(size: int) -> None:
    with pytest.raises(FormatError, match=f"{size} bytes"):
        ca.requested_key(bytes(size))


@given(st.binary(min_size=1, max_size=300))
def test_garbage_is_no_request(data: bytes) -> None:
    with pytest.raises(FormatError):
        ca.requested_key(data)


def test_a_request_with_another_kind_of_key_is_refused() -> None:
    for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        with pytest.raises(FormatError, match="P-256"):
            ca.requested_key(csr(key))


def test_a_request_that_its_key_did_not_sign_is_refused() -> None:
    request = bytearray(csr(ec.generate_private_key(ec.SECP256R1())))
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    mine = x509.load_der_x509_csr(bytes(request)).public_key()
    assert isinstance(mine, ec.EllipticCurvePublicKey)
    old, new = (k.public_numbers().x.to_bytes(32, "big") + k.public_numbers().y.to_bytes(32, "big") for k in (mine, other))
    with pytest.raises(FormatError, match="not signed by the key"):
        ca.requested_key(bytes(request).replace(old, new))


def test_a_certificate_is_due_in_the_last_third_of_its_life() -> None:
    certificate, _ = ca.issue_server(AUTHORITY, ["a"], NOW)
    day_ms = 86_400_000
    assert not ca.is_due(certificate, NOW + 243 * day_ms)
    assert ca.is_due(certificate, NOW + 244 * day_ms)


@pytest.mark.parametrize("host", ["bad host", "ü.example", "", "-a.example", "a..b", "a" * 64, "agg.example:9443"])
def test_a_name_that_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(InputError, match="neither a host name"):
        ca.issue_server(AUTHORITY, [host], NOW)
