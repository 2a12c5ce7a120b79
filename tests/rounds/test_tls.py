"""Mutual TLS on a real port: both sides show certificates, and nobody without one gets as far as a message."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.identity.edge_config import Edge
from compeft_proto.clock import now_ms
from compeft_proto.errors import UnreachableError
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.transport import ClientTls
from compeft_server.app.server import Settings, start
from compeft_server.data_directory import open_ledger
from compeft_server.flower.conductor import Conductor, ConductorConfig
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.identity.tls_credentials import Tls
from tests.rounds.conftest import EXPERT, genesis


def pem(folder: Path, name: str, blob: trustme.Blob) -> Path:
    path = folder / name
    blob.write_to_path(str(path))
    path.chmod(0o600)
    return path


def credentials(authority: trustme.CA, identity: trustme.LeafCert) -> ClientTls:
    chain = b"".join(blob.bytes() for blob in identity.cert_chain_pems)
    return ClientTls(authority.cert_pem.bytes(), chain, identity.private_key_pem.bytes())


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secured(tmp_path: Path, authority: trustme.CA) -> Iterator[tuple[str, SigningKey, SigningKey]]:
    """Address, aggregator's key, and the key of a conductor that is also a client."""
    identity = authority.issue_cert("localhost", "127.0.0.1")
    tls = Tls(
        pem(tmp_path, "cert", identity.cert_chain_pems[0]),
        pem(tmp_path, "key", identity.private_key_pem),
        pem(tmp_path, "ca", authority.cert_pem),
    )
    settings, member = Settings(tmp_path / "data", tls=tls), new_key()
    ledger = open_ledger(settings.data)
    ledger.enrol("conductor", member.public, "conductor", now_ms())
    server, port = start(settings, ledger)
    yield f"localhost:{port}", own_key(settings.data), member
    server.stop(None).wait()
    ledger.close()


def edge(secured: tuple[str, SigningKey, SigningKey], tls: ClientTls | None, folder: Path) -> EdgeClient:
    address, aggregator, member = secured
    return EdgeClient(Edge(address, member, aggregator.public, folder, tls, patience_s=0))


def test_a_client_with_a_certificate_publishes_and_syncs(
    secured: tuple[str, SigningKey, SigningKey], authority: trustme.CA, tmp_path: Path
) -> None:
    address, aggregator, member = secured
    tls = credentials(authority, authority.issue_cert("edge"))
    Conductor(ConductorConfig(address, member, aggregator.public, tls)).publish(genesis())
    assert edge(secured, tls, tmp_path / "state").sync(EXPERT).version == 0


def test_a_client_without_tls_gets_nowhere(secured: tuple[str, SigningKey, SigningKey], tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        edge(secured, None, tmp_path / "state").sync(EXPERT)


def test_a_certificate_of_another_authority_gets_nowhere(
    secured: tuple[str, SigningKey, SigningKey], authority: trustme.CA, tmp_path: Path
) -> None:
    other = trustme.CA().issue_cert("edge")
    with pytest.raises(UnreachableError):
        edge(secured, credentials(authority, other), tmp_path / "state").sync(EXPERT)


def test_a_server_of_another_authority_is_not_believed(
    secured: tuple[str, SigningKey, SigningKey], authority: trustme.CA, tmp_path: Path
) -> None:
    tls = credentials(trustme.CA(), authority.issue_cert("edge"))
    with pytest.raises(UnreachableError):
        edge(secured, tls, tmp_path / "state").sync(EXPERT)
