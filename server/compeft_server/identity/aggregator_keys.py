"""The aggregator's own signing key, those it had before, and the way from one to the next.

    aggregator.key             the key in force (mode 0600)
    aggregator.pub             its public half, then those of earlier keys, newest first
    aggregator-next.key        the key that the next start of `compeft serve` takes up (mode 0600)
    aggregator-handovers.pb    each change, sealed by the older key

A key changes at a start only, so one process signs with one key.
"""

from pathlib import Path

from google.protobuf.message import DecodeError

from compeft_core.errors import InputError
from compeft_proto.errors import ConflictError
from compeft_proto.key_handover import earlier, hand_over
from compeft_proto.keys import PublicKey, SigningKey, new_key, signing_key_from_pem
from compeft_proto.v1 import enrolment_pb2 as ep
from compeft_server.private_files import read_file, write_durably

KEY_FILE, NEXT_FILE, HANDOVERS_FILE = "aggregator.key", "aggregator-next.key", "aggregator-handovers.pb"


def own_key(data: Path) -> SigningKey:
    """The key in force, made on first use with mode 0600; public halves lie beside it. Errors: ForbiddenError, InputError."""
    path = data / KEY_FILE
    if not path.exists():
        data.mkdir(parents=True, exist_ok=True)
        write_durably(path, new_key().to_pem(), mode=0o600)
    key = _read(path)
    public = b"".join(k.to_pem() for k in (key.public, *earlier(key.public, handovers(data).statements)))
    if not path.with_suffix(".pub").exists() or path.with_suffix(".pub").read_bytes() != public:
        write_durably(path.with_suffix(".pub"), public)
    return key


def earlier_keys(data: Path) -> tuple[PublicKey, ...]:
    """The public keys before the one in force, newest first: what they signed still holds."""
    return earlier(own_key(data).public, handovers(data).statements)


def handovers(data: Path) -> ep.Handovers:
    """Every change of key, oldest first. Errors: InputError if the file is damaged."""
    path = data / HANDOVERS_FILE
    if not path.exists():
        return ep.Handovers()
    try:
        return ep.Handovers.FromString(read_file(path))
    except DecodeError as error:
        raise InputError(f"{path} is damaged: restore it from a backup, clients follow it to the newest key") from error


def stage(data: Path) -> SigningKey:
    """Make the next key; it is taken up by the next start of `compeft serve`. Errors: ConflictError if one waits already."""
    path = data / NEXT_FILE
    if path.exists():
        raise ConflictError(f"{path} waits already: restart `compeft serve` to take it up")
    own_key(data)
    write_durably(path, new_key().to_pem(), mode=0o600)
    return _read(path)


def take_up(data: Path, now_ms: int) -> SigningKey | None:
    """Put the waiting key in force, introduced by the old one; None if none waits. A crash in between is made good by the next call."""
    path = data / NEXT_FILE
    if not path.exists():
        return None
    old, new, known = own_key(data), _read(path), handovers(data)
    if old.keyid != new.keyid:
        known.statements.append(hand_over(old, new.public, now_ms))
        write_durably(data / HANDOVERS_FILE, known.SerializeToString())
    path.replace(data / KEY_FILE)
    return own_key(data)


def _read(path: Path) -> SigningKey:
    return signing_key_from_pem(read_file(path), str(path), path.stat().st_mode)
