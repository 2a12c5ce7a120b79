"""Who and what gets in: every check on a message from outside, as plain functions that do no I/O.

The order is fixed (docs/protocol.md, "Order of checks"): 1 size, 2 signature, 3 payload type, 4 parse, 5 freshness and replay,
6 rules, 7 chunks; then 8 store, 9 ledger, 10 receipt, which are not checks. Steps 1 to 4 are `compeft_proto.envelope`. A message that
fails a step has changed nothing.
"""

import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np

from compeft_core import Encoded, bf16
from compeft_core.errors import FormatError, InputError, LayoutMismatchError, LimitError, NotFiniteError
from compeft_core.format.header import Blob
from compeft_proto.base_model import BaseModel, base_model_of, check_base_model
from compeft_proto.chunk_refs import check_digest, check_refs
from compeft_proto.convert import check_payload, layout_from_proto, read_payload
from compeft_proto.errors import (
    DuplicateError,
    ExpiredError,
    ForbiddenError,
    ReplayError,
    RoundClosedError,
    UnknownExpertError,
    WrongAdapterError,
    WrongBaseError,
)
from compeft_proto.name_checks import check_name
from compeft_proto.state_steps import COMPACT
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.domain.limits import Limits
from compeft_server.domain.policy import Action, Decision
from compeft_server.domain.records import ARMS, Arm, Expert, Member, Role, Round, Submission

MAX_METRICS = 64
LARGE_BYTES = 16 * 2**20
"""Payloads above are checked piece by piece."""
DENSE_BYTES = 2**20
"""Bytes of a dense part that are looked at at a time."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What the ledger knows when an update arrives. `round` is the one it names, `joins` the one that it would be merged in: the
    same, or an open one that takes late updates. `same` is the accepted update with the same digest, `other` any accepted update of the
    same client for the round it joins; `accepted_sequence` is the client's newest number that was accepted, or that it has been told
    of; `policy` says whether the member may publish to the expert, which is bound to `base_model`.
    """

    member: Member
    expert: Expert | None
    round: Round | None
    joins: Round | None
    base_state_digest: bytes
    same: Submission | None
    other: Submission | None
    accepted_sequence: int
    policy: Decision
    base_model: BaseModel


def admit_member(member: Member, claimed_keyid: str, *allowed: Role) -> Member:
    """Step 6, who: the signer's role allows it, and the manifest names the key that signed it."""
    if member.role not in allowed:
        raise ForbiddenError(f"{member.name!r}, role {member.role}, may not do this; expected {' or '.join(allowed)}")
    if member.public.keyid != claimed_keyid:
        raise ForbiddenError(f"manifest names key {claimed_keyid[:40]!a}, key {member.public.keyid} signed it")
    return member


def admitted(decision: Decision, member: Member, expert: str, action: Action) -> Decision:
    """Step 6, policy: the decision, if it is a yes. Errors: ForbiddenError with its reason and the way out."""
    if not decision.allowed:
        raise ForbiddenError(
            f"{member.name!r}, role {member.role}, may not {action} {expert[:40]}: {decision.reason}; "
            f"ask the aggregator's operator (compeft policy explain)"
        )
    return decision


def admit_time(issued_at_ms: int, expires_at_ms: int, now_ms: int, limits: Limits) -> None:
    """Step 5, clock: not from the future, not too old, not expired."""
    if issued_at_ms > now_ms + limits.max_clock_skew_ms:
        raise ExpiredError(f"issued {(issued_at_ms - now_ms) / 1000:.0f} s in the future: set the sender's clock")
    if issued_at_ms < now_ms - limits.max_age_ms or expires_at_ms < now_ms:
        raise ExpiredError(
            f"issued {(now_ms - issued_at_ms) / 1000:.0f} s ago and expired: seal it again, or set the sender's clock"
        )


def admit_update(update: pb.UpdateManifest, situation: Situation, now_ms: int, limits: Limits) -> Submission | None:
    """Steps 5 and 6 for an update. Returns the accepted submission if this very update is in already, else None.

    Errors: ExpiredError, RoundClosedError, ReplayError, DuplicateError; then ForbiddenError, UnknownExpertError, WrongBaseError,
    LayoutMismatchError, WrongAdapterError, LimitError, NotFiniteError, FormatError.
    """
    if situation.same is not None and situation.same.merged_in is None and _is_open(situation.joins):
        return situation.same
    if situation.same is not None:
        raise ReplayError(f"update {update.sequence} of round {update.round} was accepted before, its round is over")
    admit_time(update.issued_at_ms, update.expires_at_ms, now_ms, limits)
    _check_round(update, situation, now_ms)
    admit_member(situation.member, update.keyid, "edge")
    admitted(situation.policy, situation.member, update.expert, "publish")
    _check_expert(update, situation)
    _check_claims(update, limits)
    return None


def admit_payload(update: pb.UpdateManifest, blob: Blob, expert: Expert, limits: Limits) -> Encoded | None:
    """Step 7: the chunks, once they are all here, are what the manifest says. Returns what they encode, unless they are too large to be
    in memory at once. Errors: FormatError, LayoutMismatchError, NotFiniteError; LimitError if a dense value is too large;
    those of `blob`.
    """
    encoded = None
    if len(blob) > LARGE_BYTES:
        check_payload(update.coding, blob, expert.layout)
    else:
        encoded = read_payload(update.coding, bytes(blob[: len(blob)]), expert.layout)
    _check_dense(blob, expert.layout.dense_size, limits)
    return encoded


def _check_dense(blob: Blob, size: int, limits: Limits) -> None:
    """The values of the dense part, which ends a payload: bfloat16, read some at a time."""
    for start in range(len(blob) - 2 * size, len(blob), DENSE_BYTES):
        halves = np.frombuffer(bytes(blob[start : min(len(blob), start + DENSE_BYTES)]), "<u2")
        _check_magnitude(float(np.abs(bf16.unpack(halves)).max()), limits)


def _check_magnitude(found: float, limits: Limits) -> None:
    if not math.isfinite(found):
        raise NotFiniteError("update names a scale or a dense value that is NaN or infinite: did training diverge?")
    if found > limits.max_magnitude:
        raise LimitError(
            f"update has a value of {found:g}, expected magnitudes up to {limits.max_magnitude:g}: did training diverge?"
        )


def _check_round(update: pb.UpdateManifest, situation: Situation, now_ms: int) -> None:
    found, joins = situation.round, situation.joins
    if found is None or joins is None or not _is_open(joins):
        raise RoundClosedError(f"round {update.round} of run {update.run[:40]!a} is {'closed' if found else 'unknown'}")
    if now_ms > joins.deadline_ms:
        raise RoundClosedError(f"round {joins.round} ended {(now_ms - joins.deadline_ms) / 1000:.1f} s ago")
    late = joins.base_version - found.base_version
    if joins is not found and late > joins.max_staleness:
        raise RoundClosedError(
            f"round {update.round} is closed, and round {joins.round} takes updates that are {joins.max_staleness} versions late, "
            f"this one is {late}"
        )
    if update.round_nonce != found.nonce:
        raise ReplayError(
            f"update carries nonce {update.round_nonce.hex()[:16]}, round {update.round} has {found.nonce.hex()[:16]}"
        )
    if situation.other is not None:
        raise DuplicateError(
            f"{situation.member.name!r} has sent update {situation.other.sequence} for round {joins.round} already"
        )
    if update.sequence <= situation.accepted_sequence:
        raise ReplayError(f"sequence number {update.sequence}, the newest accepted or settled is {situation.accepted_sequence}")


def _check_expert(update: pb.UpdateManifest, situation: Situation) -> None:
    expert, found = situation.expert, situation.round
    if expert is None or found is None:
        raise UnknownExpertError(f"no expert {update.expert[:40]!a}")
    check_base_model(base_model_of(update), expert.name, situation.base_model)
    built_on, head = (update.base_version, update.base_state_digest), (found.base_version, situation.base_state_digest)
    if built_on != head:
        raise WrongBaseError(
            f"built on version {built_on[0]} ({built_on[1].hex()[:16]}), "
            f"round {found.round} on {head[0]} ({head[1].hex()[:16]}): sync first"
        )
    if update.layout_digest != expert.layout.digest:
        raise LayoutMismatchError(
            f"layout {update.layout_digest.hex()[:16]}, {expert.name} has {expert.layout.digest.hex()[:16]}"
        )
    if update.adapter_config_digest != expert.adapter_config_digest:
        raise WrongAdapterError(
            f"adapter configuration {update.adapter_config_digest.hex()[:16]}, {expert.name} has {expert.adapter_config_digest.hex()[:16]}"
        )


def weight_of(message: pb.UpdateManifest | pb.QualityReport) -> float:
    """The weight that an update or a measured value claims; messages from before weights state a number of examples."""
    return message.weight if message.HasField("weight") else float(message.num_examples)


def admit_weight(message: pb.UpdateManifest | pb.QualityReport, limits: Limits) -> float:
    """The weight that a message claims. Errors: LimitError if it is not between 0 and the cap, NaN included."""
    weight = weight_of(message)
    if not 0 <= weight <= limits.max_examples:
        raise LimitError(f"invalid weight {weight:g}: expected a number from 0 to {limits.max_examples:g}")
    return weight


def _check_claims(update: pb.UpdateManifest, limits: Limits) -> None:
    admit_weight(update, limits)
    if len(update.metrics) > MAX_METRICS:
        raise LimitError(f"update has {len(update.metrics)} metrics, the cap is {MAX_METRICS}")
    for metric in update.metrics:
        check_name(metric.name, "metric")
        if not math.isfinite(metric.value):
            raise NotFiniteError(f"metric {metric.name} is {metric.value}")
    _check_magnitude(max((abs(scale) for scale in update.coding.scales), default=0.0), limits)
    if not update.chunks:
        raise FormatError("update names no chunk")
    check_refs(update.chunks, limits.max_payload_bytes)


def admit_genesis(genesis: pb.Genesis, limits: Limits) -> None:
    """Steps 4 to 6 for a new expert: names, digests, chunks. Errors: FormatError, LimitError."""
    check_name(genesis.expert, "expert")
    base_model_of(genesis)
    if hashlib.sha256(genesis.adapter_config).digest() != genesis.adapter_config_digest:
        raise FormatError(f"genesis of {genesis.expert} names another digest than that of its adapter configuration")
    _check_configuration(genesis)
    check_digest(genesis.state_digest, "state")
    layout = layout_from_proto(genesis.layout)
    if layout.size > limits.max_parameters:
        raise LimitError(f"genesis of {genesis.expert} has {layout.size} parameters, the cap is {limits.max_parameters}")
    if genesis.WhichOneof("initial") is None:
        raise FormatError(f"genesis of {genesis.expert} has neither a seed nor a snapshot")
    size = check_refs(genesis.snapshot.chunks, limits.max_payload_bytes)
    if genesis.WhichOneof("initial") != "snapshot":
        return
    whole = 4 * layout.size
    if size > whole or (size < whole and genesis.snapshot.coding != COMPACT):
        raise FormatError(f"genesis of {genesis.expert} has a snapshot of {size} bytes, its layout needs {whole}")


def _check_configuration(genesis: pb.Genesis) -> None:
    """A configuration is a JSON object that every client can read, or nothing."""
    try:
        found = json.loads(genesis.adapter_config or b"{}")
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"genesis of {genesis.expert} has an adapter configuration that is not JSON, or is nested too deep"
        ) from error
    if not isinstance(found, dict):
        raise FormatError(
            f"genesis of {genesis.expert} has a JSON {type(found).__name__} as adapter configuration, needed is an object"
        )


def admit_metric(arm: str, metric: pb.Metric) -> Arm:
    """Steps 4 and 6 for a task metric; its arm. Errors: FormatError, InputError, NotFiniteError."""
    check_name(metric.name, "metric")
    found = next((a for a in ARMS if a == arm), None)
    if found is None:
        raise InputError(f"arm {arm[:20]!a}, expected one of {', '.join(ARMS)}")
    if not math.isfinite(metric.value):
        raise NotFiniteError(f"metric {metric.name} is {metric.value}")
    return found


def _is_open(found: Round | None) -> bool:
    return found is not None and found.closed_at_ms is None
