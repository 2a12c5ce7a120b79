"""Becoming and staying a member: `enrol` by an invitation, `renew` what it gave. Private keys are made here and never leave.

Everything is written so that a lost answer or a crash is made good by the same command again: the signing key is written before the first
byte is sent, and the folder's index last.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from compeft_client.durable_files import write_durably
from compeft_client.identity.certificates import NO_CERTIFICATE, Wanted, check_certificate, new_request, pinned_authority
from compeft_client.identity.edge_config import edge_of
from compeft_client.identity.key_files import load_signing_key
from compeft_client.identity.site_folder import write_index
from compeft_core.errors import InputError
from compeft_proto import envelope as dsse
from compeft_proto.clock import now_ms
from compeft_proto.errors import ReplayError, UnknownKeyError, from_rpc
from compeft_proto.invitation import Invitation, split_address
from compeft_proto.key_handover import earlier, follow
from compeft_proto.keys import PublicKey, SigningKey, check_private, new_key
from compeft_proto.site_layout import FILES, INDEX
from compeft_proto.transport import LOOPBACK, open_channel, proxy_options
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_proto.v1 import enrolment_pb2_grpc as rpc

T = TypeVar("T")
NONCE_BYTES = 16
WAIT_S = 30.0
NEXT_KEY = "signing-next.key"
"""A new signing key of which the aggregator may or may not know yet."""


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What a member is told: its name and role, its key in force, the end of its certificate (0: it has none), the aggregator."""

    name: str
    role: str
    keyid: str
    expires_at_ms: int
    aggregator: str


def enrol(invitation: Invitation, address: str, folder: Path) -> MemberStatus:
    """Become a member and write the site folder. Errors: InputError if the folder is one already, or the address is remote and the
    invitation names no authority; TrustError if the server is not the one that invited; the aggregator's refusal; UnreachableError.
    """
    if (folder / INDEX).exists():
        raise InputError(f"{folder} is a site folder already: choose another, or `compeft renew` it")
    host, _ = split_address(address)
    key, wanted = _prepare(folder), new_request("compeft") if invitation.fingerprint else NO_CERTIFICATE
    request = ep.EnrolmentRequest(
        invitation=invitation.number,
        secret=invitation.secret,
        certificate_request=wanted.request,
        keyid=key.keyid,
        nonce=secrets.token_bytes(NONCE_BYTES),
        issued_at_ms=now_ms(),
    )
    introduction = ep.Introduction(public_key=key.public.raw, sealed=dsse.seal(key, dsse.ENROLMENT_REQUEST, request))
    with _open_door(invitation, address) as channel:
        reply = _call(lambda: rpc.EnrolmentStub(channel).Enrol(introduction, timeout=WAIT_S), address)
    aggregator = PublicKey(reply.public_key)
    grant = dsse.open_envelope(reply.sealed, dsse.only(aggregator), dsse.GRANT)
    _check(grant, request.nonce, key.keyid)
    _write_grant(folder, grant, wanted, (aggregator, *earlier(aggregator, grant.handovers.statements)))
    exchange = f"{f'[{host}]' if ':' in host else host}:{grant.exchange_port}"
    write_index(folder, {"aggregator": exchange, "enrolment": address, "name": grant.name, "role": grant.role})
    return MemberStatus(grant.name, grant.role, key.keyid, grant.expires_at_ms, exchange)


def renew(folder: Path, *, replace_key: bool) -> MemberStatus:
    """A new certificate, and a new signing key if asked for; earlier updates stay this member's.

    Errors: those of `edge_of`; the aggregator's refusal; UnreachableError.
    """
    old, waiting = load_signing_key(folder / FILES["key"]), folder / NEXT_KEY
    if waiting.exists():  # the answer to an earlier renewal was lost: perhaps the key is in force
        try:
            return _renew(folder, load_signing_key(waiting), None)
        except UnknownKeyError:
            return _renew(folder, old, load_signing_key(waiting))
    if replace_key:
        write_durably(waiting, new_key().to_pem(), mode=0o600)
        return _renew(folder, old, load_signing_key(waiting))
    return _renew(folder, old, None)


def _renew(folder: Path, key: SigningKey, new: SigningKey | None) -> MemberStatus:
    """One renewal, signed by the key in force, and by the new one if there is one."""
    edge = edge_of({"site": folder})
    wanted = new_request("compeft") if edge.tls else NO_CERTIFICATE
    request = ep.RenewalRequest(
        keyid=key.keyid,
        certificate_request=wanted.request,
        new_public_key=new.public.raw if new else b"",
        nonce=secrets.token_bytes(NONCE_BYTES),
        issued_at_ms=now_ms(),
    )
    sealed = dsse.seal(key, dsse.RENEWAL_REQUEST, request)
    sealed = dsse.countersign(sealed, new) if new else sealed
    with open_channel(edge.address, edge.tls) as channel:
        stub = rpc.MembershipStub(channel)
        found = _call(lambda: stub.ListHandovers(ep.HandoversRequest(), timeout=WAIT_S), edge.address)
        known = follow((edge.aggregator, *edge.older), found.statements)
        answer = _call(lambda: stub.Renew(sealed, timeout=WAIT_S), edge.address)
    grant, in_force = dsse.open_envelope(answer, dsse.only(known[0]), dsse.GRANT), new or key
    _check(grant, request.nonce, in_force.keyid)
    _write_grant(folder, grant, wanted, known)
    if (folder / NEXT_KEY).exists():
        (folder / NEXT_KEY).replace(folder / FILES["key"])
    return MemberStatus(grant.name, grant.role, in_force.keyid, grant.expires_at_ms, edge.address)


def _prepare(folder: Path) -> SigningKey:
    """The folder, for its owner only, and a signing key in it; that of an attempt that did not come to its end is used again."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_private(str(folder), folder.stat().st_mode)
    path = folder / FILES["key"]
    if not path.exists():
        write_durably(path, new_key().to_pem(), mode=0o600)
    return load_signing_key(path)


def _open_door(invitation: Invitation, address: str) -> grpc.Channel:
    """A channel to a server that the invitation's authority certified, or to this machine."""
    if not invitation.fingerprint:
        if not address.startswith(LOOPBACK):
            raise InputError(
                f"{address} is not this machine and the invitation names no authority: `compeft ca init` there, then invite again"
            )
        return grpc.insecure_channel(address, proxy_options(address))
    authority = pinned_authority(address, invitation.fingerprint)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority), proxy_options(address))


def _check(grant: ep.Grant, nonce: bytes, keyid: str) -> None:
    """The grant answers this very request. Errors: ReplayError."""
    if grant.nonce != nonce or grant.keyid != keyid:
        raise ReplayError(f"the aggregator's grant is for key {grant.keyid[:32]!a}, asked was for {keyid}")


def _write_grant(folder: Path, grant: ep.Grant, wanted: Wanted, known: tuple[PublicKey, ...]) -> None:
    """The new certificate with its key, in one file; the authorities and the aggregator's keys to believe."""
    if wanted.request:
        check_certificate(grant.certificate, wanted.request, grant.authorities)
        write_durably(folder / FILES["tls-ca"], grant.authorities)
        write_durably(folder / FILES["tls-cert"], grant.certificate + wanted.key, mode=0o600)
    write_durably(folder / FILES["aggregator-key"], b"".join(key.to_pem() for key in known))


def _call(work: Callable[[], T], address: str) -> T:
    try:
        return work()
    except grpc.RpcError as error:
        raise from_rpc(error, address) from error
