"""The authority's files in the aggregator's data directory, folder `ca` (mode 0700): made, read, renewed, replaced.

    authority.pem        certificate and key that sign (mode 0600)
    authority-old.pem    those of the authority before it, while it is still believed
    server.pem           the server's certificate, the chain to the old authority, and its key (mode 0600)

Each file is replaced as a whole, so nobody ever reads a certificate with the key of another.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from compeft_core.errors import InputError
from compeft_proto.errors import ConflictError
from compeft_proto.keys import check_private
from compeft_server.identity import certificate_authority as ca
from compeft_server.identity.certificate_authority import Authority
from compeft_server.private_files import read_private, write_durably

FOLDER = "ca"
AUTHORITY, OLD, SERVER = "authority.pem", "authority-old.pem", "server.pem"


@dataclass(frozen=True, slots=True)
class Trust:
    """The authority that signs, and the one before it while it is still trusted."""

    current: Authority
    old: Authority | None

    @property
    def bundle(self) -> bytes:
        """The certificates to believe in PEM, newest first."""
        return ca.pem(self.current.certificate, *([self.old.certificate] if self.old else []))


def has_authority(data: Path) -> bool:
    """Whether `compeft ca init` was run for this data directory."""
    return (data / FOLDER / AUTHORITY).exists()


def init(data: Path, hosts: list[str], now_ms: int) -> Trust:
    """A new authority and the server's certificate. Errors: ConflictError if there is one."""
    if has_authority(data):
        raise ConflictError(f"{data / FOLDER} holds an authority already: `compeft ca rotate` replaces it without downtime")
    (data / FOLDER).mkdir(parents=True, mode=0o700, exist_ok=True)
    trust = Trust(ca.new_authority(hosts[0], now_ms), None)
    _write_server(data, trust, hosts, now_ms)
    _write_authority(data / FOLDER / AUTHORITY, trust.current)
    return trust


def load(data: Path) -> Trust:
    """The authorities of a data directory. Errors: InputError if it is missing, ForbiddenError if others may read its key."""
    if not has_authority(data):
        raise InputError(f"{data} holds no authority: make one with `compeft ca init`")
    check_private(str(data / FOLDER), (data / FOLDER).stat().st_mode)
    old = data / FOLDER / OLD
    return Trust(_read_authority(data / FOLDER / AUTHORITY), _read_authority(old) if old.exists() else None)


def server_certificate(data: Path) -> x509.Certificate:
    """The server's certificate. Errors: InputError."""
    path = data / FOLDER / SERVER
    return ca.certificates_from_pem(read_private(path), str(path))[0]


def renew_server(data: Path, now_ms: int, hosts: list[str] | None = None) -> x509.Certificate:
    """A new certificate and key for the server, for the same names unless others are given. A running one takes it up by itself."""
    _write_server(data, load(data), hosts or list(ca.hosts_of(server_certificate(data))), now_ms)
    return server_certificate(data)


def rotate(data: Path, now_ms: int) -> Trust:
    """A new authority that signs from now on, beside the old one, which is trusted until `retire`.

    The server shows a certificate of the new one with a chain to the old one, so every client believes it. Errors: ConflictError
    while the one before is still believed.
    """
    before = load(data)
    if before.old is not None:
        raise ConflictError("the authority before this one is still trusted: run `compeft ca retire` first")
    hosts = list(ca.hosts_of(server_certificate(data)))
    trust = Trust(ca.new_authority(hosts[0], now_ms), before.current)
    _write_authority(data / FOLDER / OLD, before.current)
    _write_authority(data / FOLDER / AUTHORITY, trust.current)
    _write_server(data, trust, hosts, now_ms)
    return trust


def retire(data: Path, now_ms: int) -> x509.Certificate:
    """Remove the old authority from the trusted ones; returns its certificate. Errors: ConflictError if absent."""
    trust = load(data)
    if trust.old is None:
        raise ConflictError(f"{data / FOLDER} holds one authority only: no other can be retired")
    (data / FOLDER / OLD).unlink()
    renew_server(data, now_ms)
    return trust.old.certificate


def _write_server(data: Path, trust: Trust, hosts: list[str], now_ms: int) -> None:
    certificate, key = ca.issue_server(trust.current, hosts, now_ms)
    chain = [ca.cross_sign(trust.old, trust.current.certificate, now_ms)] if trust.old else []
    write_durably(data / FOLDER / SERVER, ca.pem(certificate, *chain) + ca.key_pem(key), mode=0o600)


def _write_authority(path: Path, authority: Authority) -> None:
    write_durably(path, ca.pem(authority.certificate) + ca.key_pem(authority.key), mode=0o600)


def _read_authority(path: Path) -> Authority:
    data = read_private(path)
    return Authority(ca.certificates_from_pem(data, str(path))[0], ca.key_from_pem(data, str(path)))
