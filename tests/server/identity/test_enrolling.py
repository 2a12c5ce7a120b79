"""Coming in by invitation, over real connections: what gets in, what does not, and what a stranger in the middle learns."""

import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.identity import enrol
from compeft_client.identity.certificates import new_request, pinned_authority
from compeft_client.identity.edge_config import edge_of
from compeft_core.errors import CompeftError, FormatError, InputError
from compeft_proto import envelope as dsse
from compeft_proto.errors import (
    ConflictError,
    ExpiredError,
    ForbiddenError,
    SignatureError,
    TrustError,
    UnknownKeyError,
    UnreachableError,
    from_rpc,
)
from compeft_proto.invitation import Invitation, new_invitation
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_proto.v1 import enrolment_pb2_grpc as rpc
from compeft_server.domain.limits import Limits
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.identity.registrar import Registrar
from compeft_server.identity.tls_credentials import from_authority, server_credentials
from compeft_server.rpc.enrolment_servicer import enrolment_server
from tests.rounds.conftest import EXPERT, genesis
from tests.server.identity.conftest import HOUR_MS, House, client


@pytest.fixture
def other(tmp_path: Path) -> Iterator[House]:
    """An aggregator of somebody else."""
    made = House(tmp_path / "other")
    made.open()
    yield made
    made.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def call(house: House, introduction: ep.Introduction) -> ep.Introduction:
    """Enrol over the wire, with a message made by hand."""
    authority = pinned_authority(house.door, house.invite("somebody-else").fingerprint)
    with grpc.secure_channel(house.door, grpc.ssl_channel_credentials(authority)) as channel:
        try:
            return rpc.EnrolmentStub(channel).Enrol(introduction, timeout=10)
        except grpc.RpcError as error:
            raise from_rpc(error, house.door) from error


def request(invitation: Invitation, key: SigningKey, house: House, **changes: object) -> ep.EnrolmentRequest:
    made = ep.EnrolmentRequest(
        invitation=invitation.number,
        secret=invitation.secret,
        certificate_request=new_request("x").request,
        keyid=key.keyid,
        nonce=b"n" * 16,
        issued_at_ms=house.clock(),
    )
    made.MergeFrom(ep.EnrolmentRequest(**changes))  # type: ignore[arg-type]
    return made


def introduction(key: SigningKey, asked: ep.EnrolmentRequest, signer: SigningKey | None = None) -> ep.Introduction:
    return ep.Introduction(public_key=key.public.raw, sealed=dsse.seal(signer or key, dsse.ENROLMENT_REQUEST, asked))


def test_an_invited_client_gets_a_site_folder_and_syncs_with_it(house: House) -> None:
    house.conductor().publish(genesis())
    site = house.enrol("berlin")
    assert client(site).sync(EXPERT).version == 0
    assert mode(site) == 0o700
    assert [mode(site / name) for name in ("signing.key", "tls.pem", "site.json")] == [0o600] * 3
    (berlin,) = [e for e in house.ledger.membership.enrolled() if e.name == "berlin"]
    assert berlin.role == "edge"
    assert berlin.certificate_expires_at_ms is not None


def test_on_loopback_without_tls_it_works_too(plain: House) -> None:
    plain.conductor().publish(genesis())
    site = plain.enrol("berlin")
    assert client(site).sync(EXPERT).version == 0
    assert not (site / "tls.pem").exists()


def test_another_key_cannot_use_an_invitation_again(house: House) -> None:
    invitation = house.invite("berlin")
    house.try_to_enrol(invitation, "berlin")
    with pytest.raises(ForbiddenError, match="ask the operator for a new one"):
        house.try_to_enrol(invitation, "thief")
    assert [e.name for e in house.ledger.membership.enrolled()] == ["berlin"]
    assert "used" in house.refusals()[0]


def test_an_answer_that_was_lost_is_given_again_to_the_same_key(house: House) -> None:
    invitation = house.invite("berlin")
    first = house.try_to_enrol(invitation, "berlin")
    (house.folder / "berlin" / "site.json").unlink()
    again = house.try_to_enrol(invitation, "berlin")
    assert again.keyid == first.keyid
    assert len(house.ledger.membership.enrolled()) == 1


def test_of_many_at_once_one_gets_in(house: House) -> None:
    invitation = house.invite("berlin")

    def attempt(number: int) -> str:
        try:
            return house.try_to_enrol(invitation, f"racer-{number}").name
        except CompeftError as error:
            return error.code

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(attempt, range(4)))
    assert found.count("berlin") == 1
    assert set(found) <= {"berlin", "forbidden", "conflict"}
    assert len(house.ledger.membership.enrolled()) == 1


def test_whatever_is_wrong_with_an_invitation_a_stranger_reads_the_same_line(house: House) -> None:
    expired, withdrawn, used = house.invite("a", valid_ms=-1), house.invite("b"), house.invite("c")
    house.ledger.revoke("b", house.clock())
    house.try_to_enrol(used, "c")
    forged = Invitation(used.number, b"\x00" * 32, used.fingerprint, used.address)
    unknown = new_invitation(used.fingerprint, used.address)
    lines = set()
    for number, invitation in enumerate((expired, withdrawn, used, forged, unknown)):
        with pytest.raises(ForbiddenError) as refused:
            house.try_to_enrol(invitation, f"x{number}")
        lines.add(str(refused.value))
    assert len(lines) == 1
    words = ["expired", "withdrawn", "used", "wrong secret", "unknown"]
    assert [word in reason for word, reason in zip(words, house.refusals(), strict=True)] == [True] * 5


def test_a_second_invitation_takes_the_first_one_back(house: House) -> None:
    first, second = house.invite("berlin"), house.invite("berlin")
    with pytest.raises(ForbiddenError):
        house.try_to_enrol(first, "first")
    assert house.try_to_enrol(second, "second").name == "berlin"


def test_who_is_enrolled_is_not_invited_again(house: House) -> None:
    house.enrol("berlin")
    with pytest.raises(ConflictError, match="revoke it first"):
        house.invite("berlin")
    house.ledger.revoke("berlin", house.clock())
    house.try_to_enrol(house.invite("berlin"), "berlin-again")
    assert [e.revoked_at_ms is None for e in house.ledger.membership.enrolled()] == [False, True]


def test_a_revoked_member_cannot_come_back_by_its_old_invitation(house: House) -> None:
    invitation = house.invite("berlin")
    house.try_to_enrol(invitation, "berlin")
    house.ledger.revoke("berlin", house.clock())
    (house.folder / "berlin" / "site.json").unlink()
    with pytest.raises(ConflictError):
        house.try_to_enrol(invitation, "berlin")


def test_only_the_hash_of_a_secret_is_kept(house: House) -> None:
    invitation = house.invite("berlin")
    house.ledger.close()
    kept = b"".join(path.read_bytes() for path in house.data.glob("ledger.sqlite*"))
    assert invitation.secret_digest in kept
    assert invitation.secret not in kept


def test_a_server_of_another_authority_never_hears_the_secret(house: House, other: House) -> None:
    invitation = house.invite("berlin")
    with pytest.raises(TrustError, match="nothing secret was sent"):
        enrol.enrol(invitation, other.door, house.folder / "berlin")
    assert other.refusals() == []
    assert house.try_to_enrol(invitation, "berlin").name == "berlin"


def test_a_server_that_shows_the_right_authority_but_is_not_certified_by_it_never_hears_the_secret(
    house: House, other: House
) -> None:
    class Liar(Registrar):
        def authorities(self) -> list[bytes]:
            return Registrar(house.data, own_key(house.data), house.ledger, 0, Limits(), house.clock).authorities()

    server = enrolment_server(Liar(other.data, own_key(other.data), other.ledger, 0, Limits(), other.clock))
    shown = server_credentials(lambda: from_authority(other.data, other.clock()), ask_clients=False)
    port = server.add_secure_port("localhost:0", shown)
    server.start()
    with pytest.raises(UnreachableError):
        enrol.enrol(house.invite("berlin"), f"localhost:{port}", house.folder / "berlin")
    server.stop(None).wait()
    assert other.refusals() == []


def test_an_address_that_the_certificate_is_not_for_is_named(house: House) -> None:
    with pytest.raises(InputError, match=r"certificate for localhost, 127.0.0.1, not for 127.1"):
        enrol.enrol(house.invite("berlin"), f"127.1:{house.door_port}", house.folder / "berlin")


def test_an_invitation_without_authority_is_for_this_machine_only(plain: House) -> None:
    with pytest.raises(InputError, match="not this machine"):
        enrol.enrol(plain.invite("berlin"), "192.0.2.1:9444", plain.folder / "berlin")


def test_a_garbage_certificate_request_is_refused_and_the_invitation_stays_good(house: House) -> None:
    invitation, key = house.invite("berlin"), new_key()
    with pytest.raises(FormatError, match="not a certificate request"):
        call(house, introduction(key, request(invitation, key, house, certificate_request=b"\x30\x82garbage")))
    assert house.try_to_enrol(invitation, "berlin").name == "berlin"


def test_a_key_that_the_sender_does_not_hold_is_refused(house: House) -> None:
    invitation, key, stolen = house.invite("berlin"), new_key(), new_key()
    asked = request(invitation, stolen, house)
    forged = introduction(stolen, asked, signer=key)
    forged.sealed.signatures[0].keyid = stolen.keyid
    with pytest.raises(SignatureError):
        call(house, forged)
    with pytest.raises(UnknownKeyError):
        call(house, introduction(stolen, asked, signer=key))
    with pytest.raises(ForbiddenError, match="request names key"):
        call(house, introduction(key, asked))
    assert house.ledger.membership.enrolled() == []


def test_a_request_of_yesterday_is_refused(house: House) -> None:
    invitation, key = house.invite("berlin"), new_key()
    with pytest.raises(ExpiredError):
        call(house, introduction(key, request(invitation, key, house, issued_at_ms=house.clock() - 24 * HOUR_MS)))


@pytest.mark.parametrize("public_key", [b"", b"short", bytes(64)])
def test_garbage_is_refused_with_a_typed_error(house: House, public_key: bytes) -> None:
    with pytest.raises(CompeftError, match="32"):
        call(house, ep.Introduction(public_key=public_key))


def test_the_door_serves_nothing_but_enrolment_and_no_large_message(house: House) -> None:
    authority = pinned_authority(house.door, house.invite("berlin").fingerprint)
    with grpc.secure_channel(house.door, grpc.ssl_channel_credentials(authority)) as channel:
        for method in ("compeft.v1.Membership/Renew", "compeft.v1.ExpertExchange/Conduct", "grpc.health.v1.Health/Check"):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/{method}")(b"", timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/compeft.v1.Enrolment/Enrol")(bytes(20_000), timeout=10)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]


def test_who_tries_again_and_again_is_told_to_wait(house: House) -> None:
    key = new_key()
    unknown = new_invitation(b"", "")
    codes = []
    for _ in range(12):
        with pytest.raises(CompeftError) as refused:
            call(house, introduction(key, request(unknown, key, house)))
        codes.append(refused.value.code)
    assert codes == ["forbidden"] * 10 + ["busy"] * 2
    assert len(house.refusals()) == 10


def test_revoking_takes_effect_at_once_whatever_the_certificate_says(house: House) -> None:
    house.conductor().publish(genesis())
    site = house.enrol("berlin")
    with EdgeClient(edge_of({"site": site, "patience-s": 0.0})) as connected:
        assert connected.sync(EXPERT).version == 0
        house.ledger.revoke("berlin", house.clock())
        with pytest.raises(UnknownKeyError):
            connected.sync(EXPERT)
    with pytest.raises(UnknownKeyError):
        enrol.renew(site, replace_key=False)


@pytest.mark.parametrize("file", ["signing.key", "tls.pem", "."])
def test_a_site_folder_that_others_may_read_is_refused(house: House, file: str) -> None:
    site = house.enrol("berlin")
    (site / file).chmod((site / file).stat().st_mode | 0o040)
    with pytest.raises(ForbiddenError, match=r"chmod [67]00 "):
        edge_of({"site": site})


@pytest.mark.parametrize("file", ["ca", "ca/authority.pem", "ca/server.pem"])
def test_an_authority_that_others_may_read_is_refused(house: House, file: str) -> None:
    (house.data / file).chmod((house.data / file).stat().st_mode | 0o004)
    with pytest.raises(ForbiddenError, match=r"chmod [67]00 "):
        from_authority(house.data, house.clock())


def test_explicit_options_come_before_the_site_folder(house: House, tmp_path: Path) -> None:
    site = house.enrol("berlin")
    edge = edge_of({"site": site, "aggregator": "localhost:1", "state-dir": tmp_path / "elsewhere"})
    assert (edge.address, edge.state) == ("localhost:1", tmp_path / "elsewhere")
    assert edge.key.keyid == edge_of({"site": site}).key.keyid


def test_a_folder_that_is_a_site_already_is_left_alone(house: House) -> None:
    site = house.enrol("berlin")
    before = (site / "signing.key").read_bytes()
    with pytest.raises(InputError, match="site folder already"):
        house.try_to_enrol(house.invite("other"), "berlin")
    assert (site / "signing.key").read_bytes() == before
