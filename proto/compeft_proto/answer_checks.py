"""A client's checks on an aggregator's answer and on the expert log, as plain functions without I/O.

Signatures come first (`compeft_proto.envelope`), then these; the states are checked step by step in `compeft_proto.state_steps`.
"""

import hashlib
from collections.abc import Sequence

from compeft_core.errors import FormatError
from compeft_proto import envelope as dsse
from compeft_proto.base_model import base_model_of, check_base_model, stated
from compeft_proto.errors import ChunkMismatchError, ConflictError, ExpiredError, ReplayError, UnknownKeyError, WrongBaseError
from compeft_proto.keys import PUBLIC_BYTES, PublicKey
from compeft_proto.round_task import Origin
from compeft_proto.sync_answer import Answer, Step
from compeft_proto.v1 import expert_pb2 as pb

MAX_CARRIED_MS = 60 * 60 * 1000
"""Maximum age, by this client's clock, of a request whose answer arrives by relay."""


def check_goal(expert: str, have: int, want: int | None, go_back: bool = False) -> None:
    """Check that `want` is not older than `have`, unless `go_back` is set. Errors: ReplayError."""
    if want is not None and want < have and not go_back:
        raise ReplayError(f"{expert} is at version {have} here, asked was for {want}: a client does not go back")


def check_statement(statement: pb.SyncStatement, request: pb.SyncRequest, have: int) -> None:
    """Check that the statement answers this request and offers no older version. Errors: ReplayError, WrongBaseError."""
    if statement.nonce != request.nonce or statement.keyid != request.keyid:
        raise ReplayError("the aggregator's statement answers another request: it may be a replayed old answer")
    if statement.expert != request.expert:
        raise WrongBaseError(f"the aggregator's statement is of {statement.expert[:40]!a}, asked was for {request.expert!r}")
    if statement.head_version < statement.want_version or (statement.want_version < have and not request.channel):
        raise ReplayError(
            f"{request.expert} is at version {have} here, the aggregator offers {statement.want_version} of {statement.head_version}"
        )
    if statement.channel != request.channel:
        raise WrongBaseError(f"the aggregator offers channel {statement.channel[:20]!a}, asked was for {request.channel!a}")
    if request.HasField("want_version") and statement.want_version != request.want_version:
        raise WrongBaseError(f"the aggregator offers version {statement.want_version}, asked was for {request.want_version}")


def check_carried(carried: pb.SyncRequest, now: pb.SyncRequest, now_ms: int) -> None:
    """Check that a relayed request equals the one that this client would send `now`, so that its answer is current.

    Errors: ReplayError if the client has synced or used a sequence number since; WrongBaseError for another expert; ExpiredError.
    """
    if carried.expert != now.expert:
        raise WrongBaseError(f"the letter answers a request for {carried.expert[:40]!a}, the task is of {now.expert!r}")
    made, here = (_place(request) for request in (carried, now))
    if made != here:
        raise ReplayError(
            f"the letter answers a request made at {made}, {now.expert} is at {here} here: it may be a replayed old answer"
        )
    age_ms = now_ms - carried.issued_at_ms
    if abs(age_ms) > MAX_CARRIED_MS:
        raise ExpiredError(
            f"the letter answers a request of {age_ms / 1000:.0f} s ago, expected at most {MAX_CARRIED_MS // 1000} s"
        )


def _place(request: pb.SyncRequest) -> str:
    have = f"version {request.have_version}" if request.HasField("have_version") else "no version"
    return f"{have}, sequence number {request.sequence}"


def check_channel(statement: pb.SyncStatement, have: int, go_back: bool) -> None:
    """Check that a channel offers no older version, unless `go_back` is set. Errors: ReplayError that names a rollback."""
    if go_back or statement.want_version >= have:
        return
    where = f"{statement.expert} is at version {have} here, its channel {statement.channel} at {statement.want_version}"
    if statement.HasField("channel_moved_back_from"):
        where += f", rolled back by its operator from {statement.channel_moved_back_from}"
    raise ReplayError(f"{where}: a client goes back only with permission (go_back)")


def check_base(origin: Origin, genesis: pb.Genesis) -> None:
    """Check that the expert is bound to the base model that this client states, if it states one. Errors: WrongBaseError."""
    used = stated(origin)
    if used is not None:
        check_base_model(used, genesis.expert, base_model_of(genesis))


def check_steps(steps: Sequence[Step], statement: pb.SyncStatement) -> None:
    """Check that the steps are of this expert and not newer than the version offered. `apply_steps` checks the resulting state.

    Errors: WrongBaseError; ConflictError for a package.
    """
    if statement.package:
        raise ConflictError(f"{statement.expert} is a package, not composed in rounds: fetch it with `compeft pull`")
    for step in steps:
        if step.expert != statement.expert:
            raise WrongBaseError(f"the aggregator sent a version of {step.expert[:40]!a}, asked was for {statement.expert!r}")
        if step.version > statement.want_version:
            raise WrongBaseError(f"the aggregator sent version {step.version}, expected 0 to {statement.want_version}")


def genesis_of(steps: Sequence[Step], expert: str) -> pb.Genesis:
    """The genesis in the first step, for a client without a state. Errors: FormatError if that is not version 0 with a genesis."""
    first = steps[0] if steps else pb.VersionManifest()
    if isinstance(first, pb.SnapshotManifest) or first.version != 0 or first.genesis.expert != expert:
        raise FormatError(f"version 0 of {expert} carries no genesis of its own")
    return first.genesis


def check_not_older(statement: pb.SyncStatement, known: int, go_back: bool) -> None:
    """Check that the version offered is not older than the known one, unless `go_back` is set. Errors: ReplayError."""
    if statement.want_version < known and not go_back:
        raise ReplayError(
            f"{statement.expert}: version {known} was fetched before, the aggregator offers {statement.want_version}: "
            "a client goes back only with permission (--go-back)"
        )


def package_of(answer: Answer, publisher: PublicKey | None) -> pb.VersionManifest:
    """The version of a package that an answer offers, if its publisher signed it and, if one is given, is `publisher`.

    Errors: ConflictError if the expert is not a package; WrongBaseError if it is another version; UnknownKeyError, SignatureError,
    FormatError.
    """
    statement = answer.statement
    if not statement.package:
        raise ConflictError(f"{statement.expert} is composed in rounds, it has no file: fetch it as a folder")
    manifest = answer.steps[0] if answer.steps else pb.SnapshotManifest()
    if not isinstance(manifest, pb.VersionManifest) or (manifest.expert, manifest.version, manifest.state_digest) != (
        statement.expert,
        statement.want_version,
        statement.state_digest,
    ):
        raise WrongBaseError(f"the aggregator sent another version than {statement.expert} {statement.want_version}")
    key = _publisher(manifest.publication, publisher, f"{manifest.expert} version {manifest.version}")
    package = dsse.open_envelope(manifest.publication.package, dsse.only(key), dsse.PACKAGE)
    numbers = {manifest.version} | ({manifest.rolled_back_to} if manifest.HasField("rolled_back_to") else set())
    if (package.expert, package.sha256) != (manifest.expert, manifest.state_digest) or package.version not in numbers:
        raise WrongBaseError(
            f"{manifest.expert} version {manifest.version} is not what its publisher signed: {package.expert[:40]!a}"
        )
    return manifest


def _publisher(publication: pb.Publication, expected: PublicKey | None, what: str) -> PublicKey:
    if len(publication.public_key) != PUBLIC_BYTES:
        raise FormatError(f"{what} names no publisher's key")
    key = PublicKey(publication.public_key)
    if expected is not None and key != expected:
        raise UnknownKeyError(
            f"{what} was published by {key.keyid} ({publication.publisher[:40]!a}), trusted is {expected.keyid}"
        )
    return key


def check_file(manifest: pb.VersionManifest, data: bytes) -> None:
    """Check that the bytes are the file that was signed. Errors: ChunkMismatchError."""
    found = hashlib.sha256(data).digest()
    if found != manifest.state_digest:
        raise ChunkMismatchError(
            f"{manifest.expert} version {manifest.version} makes file {found.hex()[:16]}, signed is {manifest.state_digest.hex()[:16]}"
        )


def check_pushed(manifest: pb.VersionManifest, package: pb.Package) -> None:
    """Check that the aggregator's answer is for this file. Errors: ReplayError."""
    if (manifest.expert, manifest.state_digest) != (package.expert, package.sha256):
        raise ReplayError(
            f"the aggregator answers for {manifest.expert[:40]!a} {manifest.state_digest.hex()[:16]}, not for what was pushed"
        )


def check_receipt(receipt: pb.Receipt, update_digest: bytes) -> None:
    """Check that the receipt is for this update. Errors: ReplayError."""
    if receipt.update_digest != update_digest:
        raise ReplayError(f"receipt is for update {receipt.update_digest.hex()[:16]}, sent was {update_digest.hex()[:16]}")


def check_ready(expert: str, have: int, task_version: int, pending: int | None) -> None:
    """Check that a client may submit: it has the round's version and no pending update. Errors: WrongBaseError, ConflictError."""
    if have != task_version:
        raise WrongBaseError(f"{expert} is at version {have} here, the round builds on {task_version}: sync first")
    if pending is not None:
        raise ConflictError(f"update {pending} of {expert} is still under way: sync first")
