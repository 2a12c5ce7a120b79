"""The registrar: lets new members in by invitation, renews certificates, changes keys. It joins the rules of enrolment.py with the ledger
and the authority's files; no sockets here.

The authority is read for each request, so `compeft ca rotate` needs no restart. A request that is refused has changed nothing; one that
is answered is durable.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from compeft_core.errors import CompeftError
from compeft_proto import envelope as dsse
from compeft_proto.errors import ForbiddenError, RefusedError, UnknownKeyError
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.domain import invitations
from compeft_server.domain.admission import admit_time
from compeft_server.domain.limits import Limits
from compeft_server.domain.records import Certified, Invited, Member, Role
from compeft_server.identity import authority_files
from compeft_server.identity import certificate_authority as ca
from compeft_server.identity.aggregator_keys import handovers
from compeft_server.ledger.ledger import Ledger

MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class _Certificate:
    """A member's certificate and what goes with it; all empty where the aggregator has no authority."""

    pem: bytes = b""
    authorities: bytes = b""
    certified: Certified | None = None


class Registrar:
    """Who may become and stay a member of one aggregator, whose data directory is `data`. `now_ms` is its clock."""

    def __init__(
        self, data: Path, key: SigningKey, ledger: Ledger, exchange_port: int, limits: Limits, now_ms: Callable[[], int]
    ) -> None:
        self._data, self._key, self._ledger, self._port = data, key, ledger, exchange_port
        self._limits, self._now_ms = limits, now_ms
        self._throttle, self._lock = invitations.Throttle(), threading.Lock()
        self._renewals = invitations.Throttle(total=10_000)
        self._handovers = handovers(data)

    def authorities(self) -> list[bytes]:
        """The authorities' certificates in DER, newest first; none without TLS."""
        if not authority_files.has_authority(self._data):
            return []
        trust = authority_files.load(self._data)
        found = [trust.current, trust.old] if trust.old else [trust.current]
        return [authority.certificate.public_bytes(Encoding.DER) for authority in found]

    def handovers(self) -> ep.Handovers:
        """Every change of the aggregator's key up to the one that this process signs with."""
        return self._handovers

    def enrol(self, introduction: ep.Introduction, host: str) -> ep.Introduction:
        """Let the bearer of an invitation in. Every refusal but BusyError is in the audit log with its reason.

        Errors: BusyError; SignatureError, PayloadTypeError, FormatError, ExpiredError; ForbiddenError if the invitation is not good.
        """
        now = self._now_ms()
        with self._lock:
            self._throttle.take(host, now)
        try:
            return self._enrol(introduction, now)
        except CompeftError as error:
            self._ledger.membership.refuse(host, str(error.__cause__ or error)[:MAX_REASON], now)
            raise

    def renew(self, envelope: Envelope) -> Envelope:
        """A new certificate for a member, and the new key in the place of the old one if it brings one.

        Errors: UnknownKeyError, SignatureError, BusyError above ten a minute, PayloadTypeError, FormatError, ExpiredError, ForbiddenError,
        ConflictError.
        """
        now = self._now_ms()
        verified = dsse.verify(envelope, self._lookup)
        member = self._ledger.member(verified.keyid)
        with self._lock:  # by name: a member that changes its key each time is one member
            self._renewals.take(member.name if member else verified.keyid, now)
        request = dsse.parse(verified, dsse.RENEWAL_REQUEST)
        invitations.admit_key(verified.keyid, request.keyid)
        admit_time(request.issued_at_ms, request.issued_at_ms + self._limits.max_age_ms, now, self._limits)
        if member is None:
            raise UnknownKeyError(f"key {verified.keyid} was removed just now")
        new = PublicKey(request.new_public_key) if request.new_public_key else None
        if new is not None:
            dsse.verify(envelope, dsse.only(new))
        made = self._certify(member.name, request.certificate_request, now)
        self._ledger.membership.renew(member, new, made.certified, now)
        renewed = Member(member.name, new or member.public, member.role, revoked=False)
        return self._grant(request.nonce, renewed.public.keyid, renewed.name, renewed.role, made)

    def _enrol(self, introduction: ep.Introduction, now: int) -> ep.Introduction:
        public = PublicKey(introduction.public_key)
        request = dsse.open_envelope(introduction.sealed, dsse.only(public), dsse.ENROLMENT_REQUEST)
        invitations.admit_key(public.keyid, request.keyid)
        admit_time(request.issued_at_ms, request.issued_at_ms + self._limits.max_age_ms, now, self._limits)
        invited = self._invited(request, now)
        made = self._certify(invited.name, request.certificate_request, now)
        self._ledger.membership.redeem(invited, public, made.certified, now)
        sealed = self._grant(request.nonce, public.keyid, invited.name, invited.role, made)
        return ep.Introduction(public_key=self._key.public.raw, sealed=sealed)

    def _invited(self, request: ep.EnrolmentRequest, now: int) -> Invited:
        number = request.invitation.hex()[:16]
        invited = self._ledger.membership.invited(number)
        fault = invitations.fault(invited, request, now)
        if invited is None or fault:
            raise ForbiddenError(invitations.NOT_GOOD) from RefusedError(f"invitation {number}: {fault}")
        return invited

    def _certify(self, name: str, request: bytes, now: int) -> _Certificate:
        if not authority_files.has_authority(self._data):
            return _Certificate()
        trust = authority_files.load(self._data)
        certificate = ca.issue_member(trust.current, name, ca.requested_key(request), now)
        certified = Certified(f"{certificate.serial_number:x}", ca.ends_ms(certificate))
        return _Certificate(ca.pem(certificate), trust.bundle, certified)

    def _grant(self, nonce: bytes, keyid: str, name: str, role: Role, made: _Certificate) -> Envelope:
        grant = ep.Grant(
            nonce=nonce,
            keyid=keyid,
            name=name,
            role=role,
            certificate=made.pem,
            authorities=made.authorities,
            expires_at_ms=made.certified.expires_at_ms if made.certified else 0,
            exchange_port=self._port,
            handovers=self._handovers,
        )
        return dsse.seal(self._key, dsse.GRANT, grant)

    def _lookup(self, keyid: str) -> PublicKey | None:
        member = self._ledger.member(keyid)
        return None if member is None or member.revoked else member.public
