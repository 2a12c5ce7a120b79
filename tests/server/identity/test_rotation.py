"""Everything that ends is replaced while the system runs: certificates and keys of members, server, authority and aggregator."""

import ssl
from pathlib import Path

import pytest

from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.exchange.state_directory import StateDirectory
from compeft_client.identity import enrol
from compeft_client.identity.certificates import is_due, new_request, read_certificate
from compeft_client.identity.edge_config import edge_of
from compeft_client.identity.enrol import NEXT_KEY, renew
from compeft_client.identity.key_files import load_public_keys, load_signing_key
from compeft_core.errors import FormatError, InputError
from compeft_proto import envelope as dsse
from compeft_proto.clock import now_ms
from compeft_proto.errors import (
    ConflictError,
    DuplicateError,
    ForbiddenError,
    SignatureError,
    UnknownKeyError,
    UnreachableError,
)
from compeft_proto.key_handover import earlier, follow, hand_over
from compeft_proto.keys import new_key
from compeft_proto.round_task import RoundTask
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.admin.lineage import Versions
from compeft_server.aggregation.aggregator import Aggregator, Upload
from compeft_server.app.server import Settings, start
from compeft_server.data_directory import open_ledger, open_store
from compeft_server.domain.limits import Limits
from compeft_server.identity import aggregator_keys, authority_files
from compeft_server.identity import certificate_authority as ca
from compeft_server.identity.tls_credentials import Tls, from_files
from compeft_server.private_files import write_durably
from tests.rounds.conftest import DOWNLINK, EXPERT, RUN, UPLINK, genesis, synced_by, trained
from tests.server.identity.conftest import House, client

DAY_MS = 86_400_000


def open_round(house: House, number: int) -> RoundTask:
    opened = house.conductor().open_round(EXPERT, RUN, number, 60.0)
    return RoundTask(EXPERT, RUN, number, opened.round_nonce, opened.base_version, UPLINK)


def close_round(house: House, number: int) -> int:
    return house.conductor().close_round(EXPERT, RUN, number, "average", 1.0, DOWNLINK).version


def shown(house: House) -> bytes:
    """The certificate that the exchange shows to a new connection."""
    return ssl.get_server_certificate(("127.0.0.1", house.exchange_port)).encode()


def test_renewing_brings_a_new_certificate_for_a_new_key(house: House) -> None:
    house.conductor().publish(genesis())
    site = house.enrol("berlin")
    before = read_certificate(site / "tls.pem")
    assert renew(site, replace_key=False).keyid == edge_of({"site": site}).key.keyid
    after = read_certificate(site / "tls.pem")
    assert after.serial_number != before.serial_number
    assert after.public_key() != before.public_key()
    assert client(site).sync(EXPERT).version == 0


def test_on_loopback_without_tls_a_key_is_replaced_too(plain: House) -> None:
    site = plain.enrol("berlin")
    before = edge_of({"site": site}).key.keyid
    assert renew(site, replace_key=True).keyid == edge_of({"site": site}).key.keyid != before


def test_a_replaced_key_gets_nowhere_and_its_updates_stay(house: House) -> None:
    house.conductor().publish(genesis())
    site = house.enrol("berlin")
    old = load_signing_key(site / "signing.key")
    task = open_round(house, 1)
    member = client(site)
    synced_by(member, task)
    member.submit(task, trained(1))
    (house.folder / "old.key").write_bytes(old.to_pem())
    (house.folder / "old.key").chmod(0o600)
    renew(site, replace_key=True)
    with pytest.raises(UnknownKeyError):
        enrol.renew(_with_key(site, house.folder / "old.key"), replace_key=False)
    assert close_round(house, 1) == 1
    versions = Versions(aggregator_keys.own_key(house.data), open_store(house.data), house.ledger)
    versions.verify(EXPERT, 1)
    assert [name for name, _ in versions.lineage(EXPERT)[1].contributors] == ["berlin"]


def _with_key(site: Path, key: Path) -> Path:
    """A copy of a site folder that has another signing key."""
    copy = site.with_name("copy")
    copy.mkdir(mode=0o700)
    for file in site.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
            (copy / file.name).chmod(0o600)
    (copy / "signing.key").write_bytes(key.read_bytes())
    return copy


def test_numbers_of_updates_and_what_is_under_way_go_on_under_the_new_key(house: House) -> None:
    house.conductor().publish(genesis())
    site = house.enrol("berlin")
    first = open_round(house, 1)
    member = client(site)
    synced_by(member, first)
    assert member.submit(first, trained(1)).sequence == 1
    renew(site, replace_key=True)
    renewed = client(site)
    synced_by(renewed, first)
    with pytest.raises(ConflictError, match="still under way"):
        renewed.submit(first, trained(1))
    close_round(house, 1)
    second = open_round(house, 2)
    synced_by(renewed, second)
    assert renewed.submit(second, trained(2)).sequence == 2
    close_round(house, 2)
    assert house.ledger.sequences(EXPERT, edge_of({"site": site}).key.keyid).merged == 2


def test_a_member_with_a_new_key_is_still_one_member_in_a_round(house: House) -> None:
    house.conductor().publish(genesis())
    site = house.enrol("berlin")
    task = open_round(house, 1)
    member = client(site)
    synced_by(member, task)
    member.submit(task, trained(1))
    renew(site, replace_key=True)
    fresh = edge_of({"site": site, "state-dir": house.folder / "fresh", "patience-s": 0.0})
    twice = EdgeClient(fresh)
    synced_by(twice, task)
    with pytest.raises(DuplicateError):
        twice.submit(task, trained(2))


def test_forgetting_a_member_forgets_what_it_sent_under_earlier_keys(house: House) -> None:
    house.conductor().publish(genesis())
    site, other = house.enrol("berlin"), house.enrol("paris")
    task = open_round(house, 1)
    for number, folder in enumerate((site, other)):
        member = client(folder)
        synced_by(member, task)
        member.submit(task, trained(number))
    close_round(house, 1)
    old = edge_of({"site": site}).key.keyid
    new = renew(site, replace_key=True).keyid
    house.ledger.revoke("berlin", house.clock())
    again = house.try_to_enrol(house.invite("berlin"), "berlin-again").keyid
    versions = Versions(aggregator_keys.own_key(house.data), open_store(house.data), house.ledger)
    versions.forget(EXPERT, new, now_ms())
    assert set(versions.lineage(EXPERT)[-1].forgotten) == {old, new, again}


def test_a_renewal_whose_answer_was_lost_is_made_good_by_the_next(house: House) -> None:
    site = house.enrol("berlin")
    old = (site / "signing.key").read_bytes()
    new = renew(site, replace_key=True).keyid
    (site / "signing.key").replace(site / NEXT_KEY)  # as if the aggregator had it, and this side had never heard so
    (site / "signing.key").write_bytes(old)
    (site / "signing.key").chmod(0o600)
    assert renew(site, replace_key=False).keyid == new == edge_of({"site": site}).key.keyid
    assert not (site / NEXT_KEY).exists()


def test_a_renewal_that_never_arrived_is_made_good_by_the_next(house: House) -> None:
    site = house.enrol("berlin")
    waiting = new_key()
    (site / NEXT_KEY).write_bytes(waiting.to_pem())
    (site / NEXT_KEY).chmod(0o600)
    assert renew(site, replace_key=False).keyid == waiting.keyid == edge_of({"site": site}).key.keyid


def test_a_member_revoked_during_its_upload_is_not_let_in(house: House) -> None:
    house.conductor().publish(genesis())
    site = house.enrol("berlin")
    task = open_round(house, 1)
    member = client(site)
    synced_by(member, task)
    house.close()
    with pytest.raises(UnreachableError):
        member.submit(task, trained(1))
    house.open()
    directory = StateDirectory(site / "state" / EXPERT)
    pending = directory.load().pending
    assert pending is not None
    aggregator = Aggregator(aggregator_keys.own_key(house.data), open_store(house.data), house.ledger, Limits(), house.clock)
    upload = aggregator.admit(aggregator.open(Envelope.FromString(directory.read(pending.envelope))))
    assert isinstance(upload, Upload)
    ((ref, _),) = upload.needed
    aggregator.receive(upload, ref, directory.read(pending.payload))
    house.ledger.revoke("berlin", house.clock())
    with pytest.raises(UnknownKeyError, match="revoked just now"):
        aggregator.finish(upload)
    assert house.ledger.submissions(EXPERT, RUN, 1) == []


def test_a_new_key_must_sign_for_itself(house: House) -> None:
    site = house.enrol("berlin")
    edge, stranger = edge_of({"site": site}), new_key()
    asked = ep.RenewalRequest(keyid=edge.key.keyid, new_public_key=stranger.public.raw, issued_at_ms=house.clock())
    once = dsse.seal(edge.key, dsse.RENEWAL_REQUEST, asked)
    registrar = house.registrar()
    with pytest.raises(UnknownKeyError):
        registrar.renew(once)
    forged = dsse.countersign(once, new_key())
    forged.signatures[1].keyid = stranger.keyid
    with pytest.raises(SignatureError):
        registrar.renew(forged)
    assert [e.keyid for e in house.ledger.membership.enrolled()] == [edge.key.keyid]


def test_a_certificate_is_due_in_its_last_third(house: House) -> None:
    certificate = read_certificate(house.enrol("berlin") / "tls.pem")
    assert not is_due(certificate, now_ms() + 243 * DAY_MS)
    assert is_due(certificate, now_ms() + 244 * DAY_MS)


def test_a_certificate_that_has_ended_is_named_before_anything_is_tried(house: House) -> None:
    site = house.enrol("berlin")
    key = ca.requested_key(new_request("berlin").request)
    ended = ca.issue_member(authority_files.load(house.data).current, "berlin", key, now_ms() - 366 * DAY_MS)
    (site / "tls.pem").write_bytes(ca.pem(ended))
    with pytest.raises(InputError, match=r"tls.pem ended on .* invite it again"):
        edge_of({"site": site})


def test_a_renewed_server_certificate_is_shown_without_a_restart(house: House) -> None:
    house.conductor().publish(genesis())
    connected, before = client(house.enrol("berlin")), shown(house)
    assert connected.sync(EXPERT).version == 0
    authority_files.renew_server(house.data, house.clock())
    assert shown(house) != before
    assert connected.sync(EXPERT).version == 0
    assert client(house.folder / "berlin").sync(EXPERT).version == 0


def test_files_of_the_operators_own_authority_are_taken_up_without_a_restart(house: House, tmp_path: Path) -> None:
    pem, authority = tmp_path / "own.pem", tmp_path / "authority.crt"
    made = (house.data / "ca" / "server.pem").read_bytes()
    write_durably(pem, made, mode=0o600)
    authority.write_bytes(authority_files.load(house.data).bundle)
    house.close()
    house.ledger = open_ledger(house.data)
    settings = Settings(house.data, port=house.exchange_port, tls=Tls(pem, pem, authority))
    house.servers = [start(settings, house.ledger)[0]]
    before = shown(house)
    assert before in made
    authority_files.renew_server(house.data, house.clock())
    write_durably(pem, (house.data / "ca" / "server.pem").read_bytes(), mode=0o600)
    assert shown(house) != before


def test_a_running_aggregator_renews_its_certificate_when_it_is_due(house: House) -> None:
    before = shown(house)
    house.offset_ms = 250 * DAY_MS
    assert shown(house) != before


def test_a_damaged_certificate_does_not_stop_the_running_aggregator(house: House) -> None:
    house.conductor().publish(genesis())
    site = house.enrol("berlin")
    (house.data / "ca" / "server.pem").write_bytes(b"half a fi")
    assert client(site).sync(EXPERT).version == 0


def test_an_authority_is_replaced_while_members_of_old_and_new_come_and_go(house: House) -> None:
    house.conductor().publish(genesis())
    site, late = house.enrol("berlin"), house.enrol("late")
    invitation = house.invite("paris")
    authority_files.rotate(house.data, house.clock())
    with pytest.raises(ConflictError, match="ca retire"):
        authority_files.rotate(house.data, house.clock())
    assert client(site).sync(EXPERT).version == 0  # believes the old one only
    assert house.try_to_enrol(invitation, "paris").name == "paris"  # was invited by the old one
    assert client(house.enrol("madrid")).sync(EXPERT).version == 0
    renew(site, replace_key=False)
    assert (site / "ca.crt").read_bytes().count(b"BEGIN") == 2
    retired = authority_files.retire(house.data, house.clock())
    assert client(site).sync(EXPERT).version == 0
    with pytest.raises(UnreachableError):
        client(late).sync(EXPERT)
    assert retired.subject not in {a.certificate.subject for a in [authority_files.load(house.data).current]}


def test_clients_follow_the_aggregator_to_its_new_key(house: House) -> None:
    house.conductor().publish(genesis())
    site = house.enrol("berlin")
    before = aggregator_keys.own_key(house.data)
    task = open_round(house, 1)
    member = client(site)
    synced_by(member, task)
    member.submit(task, trained(1))
    aggregator_keys.stage(house.data)
    house.close()
    house.open()
    after = aggregator_keys.own_key(house.data)
    assert after.keyid != before.keyid
    assert close_round(house, 1) == 1
    assert client(site).sync(EXPERT).version == 1
    assert load_public_keys(site / "aggregator.pub") == (after.public, before.public)
    assert load_public_keys(house.data / "aggregator.pub") == (after.public, before.public)
    fresh = house.enrol("paris")
    assert client(fresh).sync(EXPERT).version == 1  # version 0 is signed by the old key
    versions = Versions(after, open_store(house.data), house.ledger, aggregator_keys.earlier_keys(house.data))
    versions.verify(EXPERT, 1)


def test_renewing_follows_the_aggregator_over_several_keys(house: House) -> None:
    site = house.enrol("berlin")
    for _ in range(2):
        aggregator_keys.stage(house.data)
        house.close()
        house.open()
    renew(site, replace_key=False)
    assert [k.keyid for k in load_public_keys(site / "aggregator.pub")] == [
        k.keyid for k in (aggregator_keys.own_key(house.data).public, *aggregator_keys.earlier_keys(house.data))
    ]
    assert len(aggregator_keys.earlier_keys(house.data)) == 2


def test_a_second_next_key_is_not_made_while_one_waits(house: House) -> None:
    aggregator_keys.stage(house.data)
    with pytest.raises(ConflictError, match="restart"):
        aggregator_keys.stage(house.data)


def test_a_change_of_key_that_was_cut_off_is_made_good(tmp_path: Path) -> None:
    before, after = aggregator_keys.own_key(tmp_path), aggregator_keys.stage(tmp_path)
    kept = (tmp_path / "aggregator.key").read_bytes()
    aggregator_keys.take_up(tmp_path, now_ms())
    (tmp_path / "aggregator.key").replace(tmp_path / "aggregator-next.key")  # back to: written down, not yet in force
    (tmp_path / "aggregator.key").write_bytes(kept)
    (tmp_path / "aggregator.key").chmod(0o600)
    aggregator_keys.take_up(tmp_path, now_ms())
    assert aggregator_keys.own_key(tmp_path).keyid == after.keyid
    assert aggregator_keys.earlier_keys(tmp_path) == (before.public,)
    assert follow((before.public,), aggregator_keys.handovers(tmp_path).statements)[0] == after.public


def test_a_stranger_cannot_introduce_a_key() -> None:
    old, new, stranger = new_key(), new_key(), new_key()
    genuine = hand_over(old, new.public, 1)
    assert follow((old.public,), [genuine]) == (new.public, old.public)
    assert follow((old.public,), [hand_over(stranger, new.public, 1)]) == (old.public,)
    assert follow((new.public, old.public), [genuine]) == (new.public, old.public)
    forged = hand_over(stranger, stranger.public, 1)
    forged.public_key = old.public.raw
    with pytest.raises(UnknownKeyError):
        follow((old.public,), [forged])
    forged.sealed.signatures[0].keyid = old.keyid
    with pytest.raises(SignatureError):
        follow((old.public,), [forged])
    other = ep.Introduction(
        public_key=old.public.raw,
        sealed=dsse.seal(old, dsse.HANDOVER, ep.Handover(old_keyid="x", new_public_key=new.public.raw)),
    )
    with pytest.raises(FormatError, match="handover names key"):
        follow((old.public,), [other])


def test_the_keys_before_are_those_of_the_record_newest_first() -> None:
    a, b, c = new_key(), new_key(), new_key()
    statements = [hand_over(a, b.public, 1), hand_over(b, c.public, 2)]
    assert earlier(c.public, statements) == (b.public, a.public)


def test_a_tls_key_of_the_operators_own_must_be_private(house: House, tmp_path: Path) -> None:
    pem = house.data / "ca" / "server.pem"
    copy = tmp_path / "server.pem"
    copy.write_bytes(pem.read_bytes())
    copy.chmod(0o640)
    with pytest.raises(ForbiddenError, match="0640"):
        from_files(Tls(copy, copy, copy))
