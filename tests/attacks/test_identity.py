"""Replays and floods at the doors of identity: an enrolment sent twice, an invitation that is over, renewals without end."""

import secrets
from pathlib import Path

import pytest

from compeft_client.identity.edge_config import edge_of
from compeft_client.identity.enrol import renew
from compeft_proto import envelope as dsse
from compeft_proto.errors import BusyError, ConflictError, ExpiredError, ForbiddenError, UnknownKeyError
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.v1 import enrolment_pb2 as ep
from tests.server.identity.conftest import HOUR_MS, House, plain

__all__ = ["plain"]


def introduction(house: House, key: SigningKey, name: str, **changed: object) -> ep.Introduction:
    """What a client sends to be let in, as bytes that may be sent again."""
    invitation = house.invite(name)
    request = ep.EnrolmentRequest(
        invitation=invitation.number,
        secret=invitation.secret,
        keyid=key.keyid,
        nonce=secrets.token_bytes(16),
        issued_at_ms=house.clock(),
    )
    for field, value in changed.items():
        setattr(request, field, value)
    return ep.Introduction(public_key=key.public.raw, sealed=dsse.seal(key, dsse.ENROLMENT_REQUEST, request))


def test_an_enrolment_that_is_sent_again_makes_no_second_member(plain: House) -> None:
    key, registrar = new_key(), plain.registrar()
    sent = introduction(plain, key, "once")
    for _ in range(3):
        registrar.enrol(sent, "host")
    assert [m.name for m in plain.ledger.members()].count("once") == 1


def test_an_enrolment_that_is_sent_again_brings_no_revoked_member_back(plain: House) -> None:
    key, registrar = new_key(), plain.registrar()
    sent = introduction(plain, key, "gone")
    registrar.enrol(sent, "host")
    plain.ledger.revoke("gone", plain.clock())
    with pytest.raises((ForbiddenError, ConflictError)):
        registrar.enrol(sent, "host")
    found = plain.ledger.member(key.keyid)
    assert found is not None
    assert found.revoked


def test_an_enrolment_of_yesterday_and_one_of_tomorrow_are_refused(plain: House) -> None:
    for hours in (-24, 24):
        sent = introduction(plain, new_key(), "late", issued_at_ms=plain.clock() + hours * HOUR_MS)
        with pytest.raises(ExpiredError, match="clock"):
            plain.registrar().enrol(sent, f"host{hours}")


def test_an_invitation_that_was_withdrawn_by_a_newer_one_lets_nobody_in(plain: House) -> None:
    stale = introduction(plain, new_key(), "twice")
    introduction(plain, new_key(), "twice")
    with pytest.raises(ForbiddenError, match="not good"):
        plain.registrar().enrol(stale, "host")


def test_a_secret_of_another_invitation_or_none_lets_nobody_in(plain: House) -> None:
    other = plain.invite("other")
    for secret in (b"", bytes(32), other.secret, other.secret[:-1]):
        with pytest.raises(ForbiddenError):
            plain.registrar().enrol(introduction(plain, new_key(), "wrong", secret=secret), secret.hex()[:8])
    assert "wrong" not in [m.name for m in plain.ledger.members()]


def test_renewals_are_ten_a_minute_for_a_member_whatever_key_it_has(plain: House) -> None:
    site, before = plain.enrol("busy"), len(plain.ledger.audit_entries())
    for _ in range(10):
        renew(site, replace_key=True)
    for _ in range(20):
        with pytest.raises(BusyError, match="try again in"):
            renew(site, replace_key=True)
    assert len(plain.ledger.audit_entries()) - before <= 12
    assert renew(plain.enrol("calm"), replace_key=False).name == "calm"


def test_a_renewal_that_is_sent_again_after_the_key_changed_is_refused(plain: House) -> None:
    site = plain.enrol("member")
    key = edge_of({"site": site}).key
    request = ep.RenewalRequest(keyid=key.keyid, nonce=secrets.token_bytes(16), issued_at_ms=plain.clock())
    sealed = dsse.seal(key, dsse.RENEWAL_REQUEST, request)
    plain.registrar().renew(sealed)
    renew(site, replace_key=True)
    with pytest.raises(UnknownKeyError):
        plain.registrar().renew(sealed)


def test_a_renewal_for_another_members_key_is_refused(plain: House) -> None:
    mine, other = (edge_of({"site": plain.enrol(name)}).key for name in ("mine", "other"))
    request = ep.RenewalRequest(keyid=other.keyid, nonce=secrets.token_bytes(16), issued_at_ms=plain.clock())
    with pytest.raises(Exception, match="key"):
        plain.registrar().renew(dsse.seal(mine, dsse.RENEWAL_REQUEST, request))


def test_a_new_key_that_somebody_else_has_already_is_refused(plain: House) -> None:
    """Taking a member's key over: the new key must sign too, and may not be enrolled."""
    mine, other = (edge_of({"site": plain.enrol(name)}).key for name in ("mine", "other"))
    request = ep.RenewalRequest(
        keyid=mine.keyid, new_public_key=other.public.raw, nonce=secrets.token_bytes(16), issued_at_ms=plain.clock()
    )
    with pytest.raises(UnknownKeyError):
        plain.registrar().renew(dsse.seal(mine, dsse.RENEWAL_REQUEST, request))
    with pytest.raises(ConflictError):
        plain.registrar().renew(dsse.countersign(dsse.seal(mine, dsse.RENEWAL_REQUEST, request), other))


def test_a_site_folder_that_others_may_enter_is_not_used(plain: House, tmp_path: Path) -> None:
    site = plain.enrol("open")
    site.chmod(0o755)
    with pytest.raises(ForbiddenError):
        edge_of({"site": site})
