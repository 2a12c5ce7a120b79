"""Enrols, invites and revokes members by the operator's word, and makes the aggregator's next signing key."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compeft_core.errors import InputError
from compeft_proto.invitation import new_invitation, to_text
from compeft_proto.keys import public_key_from_pem
from compeft_proto.name_checks import typed_name
from compeft_server.admin import policy_admin
from compeft_server.domain.policy import EVERY
from compeft_server.domain.records import Invited, Role
from compeft_server.identity import aggregator_keys, authority_files
from compeft_server.identity import certificate_authority as ca
from compeft_server.ledger.ledger import Ledger
from compeft_server.private_files import read_file


@dataclass(frozen=True, slots=True)
class NewMember:
    """A member to let in. experts: names of the experts that it may use as its role does; `*` is every one."""

    name: str
    role: Role
    experts: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class IssuedInvitation:
    """An invitation as text, to be handed over; number: by which the ledger knows it; expires_at_ms: since 1970."""

    text: str
    number: str
    expires_at_ms: int


def enrol(ledger: Ledger, member: NewMember, key_file: Path, now_ms: int) -> str:
    """Enrol the public key in a file, and grant the member its experts; the keyid. Errors: InputError, ConflictError, FormatError."""
    _check(member)
    public = public_key_from_pem(read_file(key_file), str(key_file))
    ledger.enrol(member.name, public, member.role, now_ms)
    _grant(ledger, member, now_ms)
    return public.keyid


def invite(ledger: Ledger, data: Path, member: NewMember, address: str, valid_ms: int, now_ms: int) -> IssuedInvitation:
    """Invite a member to make its own key, and grant it its experts. Only a hash of the invitation is kept.

    address: host:port of the enrolment, to put it into the text; may be empty. Errors: InputError, ConflictError.
    """
    _check(member)
    authority = authority_files.load(data).current.certificate if authority_files.has_authority(data) else None
    made = new_invitation(ca.fingerprint(authority) if authority else b"", address)
    stored = Invited(made.number.hex(), made.secret_digest, member.name, member.role, now_ms + valid_ms)
    ledger.membership.invite(stored, now_ms)
    _grant(ledger, member, now_ms)
    return IssuedInvitation(to_text(made), stored.number, stored.expires_at_ms)


def revoke(ledger: Ledger, name: str, now_ms: int) -> None:
    """Refuse a member from now on, its invitations too. Errors: InputError if no member or invitation has that name."""
    if not ledger.revoke(name, now_ms):
        raise InputError(f"no enrolled or invited member is named {name!r}: see `compeft clients list`")


def keyid_of(ledger: Ledger, name: str) -> str:
    """The keyid of the enrolled member of this name. Errors: InputError."""
    found = next((m for m in ledger.members() if m.name == name), None)
    if found is None:
        raise InputError(f"no enrolled member is named {name!r}: see `compeft clients list`")
    return found.public.keyid


def make_next_key(ledger: Ledger, data: Path, now_ms: int) -> tuple[str, str]:
    """Make the signing key that `compeft serve` takes up at its next start; the keyids of the present and of the next one."""
    before, after = aggregator_keys.own_key(data).keyid, aggregator_keys.stage(data).keyid
    ledger.membership.note("make next key", "aggregator", now_ms, keyid=after)
    return before, after


def checked_experts(names: Sequence[str]) -> list[str]:
    """The names, if they can be experts' or are `*`. Errors: InputError."""
    return [name if name == EVERY else typed_name(name, "expert") for name in names]


def _check(member: NewMember) -> None:
    typed_name(member.name, "member")
    checked_experts(member.experts)


def _grant(ledger: Ledger, member: NewMember, now_ms: int) -> None:
    for expert in member.experts:
        policy_admin.rule(ledger, "allow", expert, member.name, policy_admin.USUAL[member.role], now_ms)
