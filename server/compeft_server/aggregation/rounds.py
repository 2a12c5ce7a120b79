"""Rounds: open, close and value them at a conductor's word. Closing merges what was accepted and appends the next version.

Every command may be repeated: opening an open round, closing a closed one, or the same quality twice changes nothing and gets the
same answer. Closing is a function of what is stored, so a crash in the middle of it is mended by closing again.
"""

import math
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, replace
from typing import TypeVar

from compeft_core import METHODS, Vector, check_parameters
from compeft_core.errors import InputError
from compeft_core.statistics import negative_variance
from compeft_proto import envelope as dsse
from compeft_proto.chunk_refs import chunks, refs_of
from compeft_proto.convert import coding_of, optimizer_to_proto, parameters_to_proto
from compeft_proto.errors import BusyError, RoundClosedError
from compeft_proto.merge_settings import PLAIN, MergeSettings, settings_of
from compeft_proto.name_checks import check_name
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.aggregation.expert_log import Carried, VersionStep, compose, kept_bytes
from compeft_server.aggregation.log_heads import LogHeads
from compeft_server.aggregation.message_kind import Dependencies
from compeft_server.aggregation.private_rounds import admit_opening, completed, merge_of, noise_of
from compeft_server.aggregation.sealed_version import next_manifest, sealed_version
from compeft_server.domain import admission
from compeft_server.domain.client_weights import COHORT, MAX_SIZE
from compeft_server.domain.private_rounds import PrivateRound
from compeft_server.domain.records import Contribution, Expert, Member, Quality, Round, Submission, Version

Command = TypeVar("Command", pb.RoundOpening, pb.RoundClosing, pb.QualityReport)
Statement = TypeVar("Statement", pb.RoundStatement, pb.Recorded)
NONCE_BYTES = 16
SUMS = frozenset({"average", "task_arithmetic", "dare", "consensus"})
"""Methods in which a weight is a share of a sum of cut values; in the others it is a vote, or a rank."""


class Rounds:
    """The conductor's side of one aggregator. The caller holds the aggregator's lock. What goes on from a version is stored by `pool`."""

    def __init__(self, parts: Dependencies, pool: Executor, heads: LogHeads) -> None:
        self._key, self._store, self._ledger = parts.key, parts.store, parts.ledger
        self._log, self._access, self._heads = parts.log, parts.access, heads
        self._limits, self._now_ms, self._pool = parts.limits, parts.now_ms, pool
        self._fresh_seed = parts.fresh_seed

    def conduct(self, verified: dsse.Verified, member: Member) -> Envelope:
        """Obey one command. Errors: PayloadTypeError, ForbiddenError, ExpiredError and what the command itself raises."""
        if verified.payload_type == dsse.ROUND_OPENING.name:
            opening = self._admit(verified, member, dsse.ROUND_OPENING)
            return self._sealed(dsse.ROUND_STATEMENT, self._open(opening), opening.head_size)
        if verified.payload_type == dsse.ROUND_CLOSING.name:
            closing = self._admit(verified, member, dsse.ROUND_CLOSING)
            return self._sealed(dsse.ROUND_STATEMENT, self._close(closing), closing.head_size)
        report = self._admit(verified, member, dsse.QUALITY)
        return self._sealed(dsse.RECORDED, self._record(report), report.head_size)

    def _sealed(self, kind: dsse.PayloadType[Statement], answer: Statement, known: int) -> Envelope:
        """The answer with the head of the audit log after it. known: entries that the conductor knows of."""
        answer.head.CopyFrom(self._heads.since(known))
        return dsse.seal(self._key, kind, answer)

    def _admit(self, verified: dsse.Verified, member: Member, kind: dsse.PayloadType[Command]) -> Command:
        command = dsse.parse(verified, kind)
        admission.admit_time(command.issued_at_ms, command.issued_at_ms + self._limits.max_age_ms, self._now_ms(), self._limits)
        admission.admit_member(member, command.keyid, "conductor")
        expert = self._access.expert(member, command.expert, carried=False)
        self._access.require(member, expert.name, "publish", self._ledger.head(expert.name))
        return command

    def _open(self, opening: pb.RoundOpening) -> pb.RoundStatement:
        expert = self._log.composed(opening.expert)
        check_name(opening.run, "run")
        found = self._ledger.round(expert.name, opening.run, opening.round)
        if found is None:
            private = admit_opening(self._ledger, opening)
            self._abandon_open_rounds(expert)
            found = Round(
                expert=expert.name,
                run=opening.run,
                round=opening.round,
                nonce=secrets.token_bytes(NONCE_BYTES),
                base_version=self._ledger.head(expert.name),
                deadline_ms=opening.deadline_ms,
                opened_at_ms=self._now_ms(),
                max_staleness=opening.max_staleness,
            )
            self._ledger.open_round(found, private)
        return self._statement(found)

    def _abandon_open_rounds(self, expert: Expert) -> None:
        """Close what an earlier conductor left open, unmerged: its clients add their updates back to their residuals."""
        for left in self._ledger.rounds(expert.name):
            if left.closed_at_ms is None:
                self._ledger.close_round(self._closed(left, left.base_version), None, ())

    def _close(self, closing: pb.RoundClosing) -> pb.RoundStatement:
        found = self._ledger.round(closing.expert, closing.run, closing.round)
        if found is None:
            raise RoundClosedError(f"round {closing.round} of run {closing.run[:40]!a} was never opened")
        if found.closed_at_ms is not None:
            return self._statement(found)
        accepted = self._ledger.submissions(found.expert, found.run, found.round)
        private = self._private(found, accepted, closing)
        version, after = self._next_version(found, accepted, closing, private) if accepted else (None, None)
        closed = self._closed(found, version.version if version else found.base_version)
        try:
            self._ledger.close_round(closed, version, [s.update_digest for s in accepted], private)
        except BusyError:  # another aggregator on this ledger has closed it, or accepted an update meanwhile: look again
            return self._close(closing)
        if version is not None and after is not None:
            self._log.remember(version, after)
        return self._statement(closed)

    def _private(self, found: Round, accepted: Sequence[Submission], closing: pb.RoundClosing) -> PrivateRound | None:
        """What a private round is merged with: a fresh seed, and the clip that follows. Errors: InputError for another method."""
        private = self._ledger.private.round(found.expert, found.run, found.round)
        if private is None or not accepted:
            return None
        return completed(private, [self._log.update(s.update_digest) for s in accepted], closing.merge_method, self._fresh_seed)

    def _next_version(
        self, found: Round, accepted: Sequence[Submission], closing: pb.RoundClosing, private: PrivateRound | None
    ) -> tuple[Version, Carried]:
        """Merge, compress, store and describe the next step, and what goes on from there; the ledger does not know of it yet."""
        started = time.monotonic()
        expert, settings = self._log.expert(found.expert), settings_of(closing)
        inputs = self._log.contributions(expert, accepted, found.base_version, settings.method not in SUMS)
        private_merge = merge_of(private, len(inputs))
        bound = MAX_SIZE if len(inputs) >= COHORT and private_merge is None else 0.0
        settings, noise = _checked(settings, len(inputs)), noise_of(private_merge, private)
        merged = self._log.merged(expert, inputs, settings.method, settings.coefficient, settings.parameters, bound, noise)
        inputs = [replace(c, left_out=not chosen) for c, chosen in zip(inputs, merged.chosen, strict=True)]
        before = self._log.carried(expert, found.base_version)
        step = compose(
            expert.layout,
            before,
            merged.vector,
            settings.optimizer,
            settings.compression,
            settings.codec,
            settings.max_payload_bytes,
        )
        _check_variances(expert, found, before.state.vector, step.after.state.vector)
        _, residual, moments = (self._stored(data) for data in (step.encoded.blob, *kept_bytes(step.after)))
        manifest = self._manifest(expert, found, inputs, settings, step)
        manifest.size_bound = bound
        if private_merge is not None:
            manifest.private_merge.CopyFrom(private_merge)
        seconds = time.monotonic() - started
        version = sealed_version(self._key, manifest, residual=residual, moments=moments, merge_seconds=seconds)
        return version, step.after

    def _stored(self, data: bytes | memoryview) -> tuple[bytes, ...]:
        """Put away in chunks, many at a time: their names."""
        return tuple(self._pool.map(lambda chunk: self._store.put(bytes(chunk)), chunks(data)))

    def _manifest(
        self, expert: Expert, found: Round, inputs: Sequence[Contribution], settings: MergeSettings, step: VersionStep
    ) -> pb.VersionManifest:
        before = self._log.version(expert.name, found.base_version)
        manifest = next_manifest(expert, before, step.after.state.digest, refs_of(step.encoded.blob), self._now_ms())
        manifest.run, manifest.round = found.run, found.round
        manifest.coding.CopyFrom(coding_of(step.encoded, step.compression))
        manifest.merge_method, manifest.coefficient = settings.method, settings.coefficient
        manifest.contributions.extend(pb.Contribution(**asdict(contribution)) for contribution in inputs)
        if settings.optimizer != PLAIN:
            manifest.optimizer.CopyFrom(optimizer_to_proto(settings.optimizer))
        if METHODS[settings.method].takes:
            manifest.merge_parameters.CopyFrom(parameters_to_proto(settings.parameters))
        return manifest

    def _record(self, report: pb.QualityReport) -> pb.Recorded:
        self._log.expert(report.expert)
        arm, weight = admission.admit_metric(report.arm, report.metric), admission.admit_weight(report, self._limits)
        self._ledger.record_quality(
            Quality(
                at_ms=self._now_ms(),
                expert=report.expert,
                run=report.run,
                round=report.round,
                version=report.version,
                arm=arm,
                client=report.client,
                metric=report.metric.name,
                value=report.metric.value,
                num_examples=weight,
            )
        )
        return pb.Recorded(nonce=report.nonce)

    def _closed(self, found: Round, version: int) -> Round:
        return replace(found, closed_at_ms=self._now_ms(), version=version)

    def _statement(self, found: Round) -> pb.RoundStatement:
        base = self._log.version(found.expert, found.base_version)
        private = self._ledger.private.round(found.expert, found.run, found.round)
        refused = [r for r in self._ledger.refusals(found.expert) if r.round == found.round and r.at_ms >= found.opened_at_ms]
        return pb.RoundStatement(
            expert=found.expert,
            run=found.run,
            round=found.round,
            round_nonce=found.nonce,
            base_version=found.base_version,
            base_state_digest=base.state_digest,
            accepted=len(self._ledger.submissions(found.expert, found.run, found.round)),
            refused=len(refused),
            version=found.version if found.version is not None else found.base_version,
            closed=found.closed_at_ms is not None,
            layout_digest=self._log.expert(found.expert).layout.digest,
            clip=private.clip if private else 0.0,
        )


def _check_variances(expert: Expert, found: Round, before: Vector, after: Vector) -> None:
    """Errors: InputError if a variance would become negative, which is possible where its tensor is ternary."""
    name = negative_variance(expert.layout, before, after)
    if name is not None:
        raise InputError(
            f"round {found.round} of {expert.name} would make the variance {name!r} negative: version {found.base_version} stays; "
            "publish a new expert that keeps this tensor dense"
        )


def _checked(settings: MergeSettings, count: int) -> MergeSettings:
    """By which settings `count` updates are merged, as the manifest will say it. Errors: InputError if a parameter is out of range or
    not taken.

    A trimmed mean of a cohort trims one update at either end at least: floor(trim * count) may be 0, and then it is a plain mean.
    """
    parameters = settings.parameters
    check_parameters(settings.method, parameters)
    if settings.method == "trimmed_mean" and count >= COHORT and parameters.trim > 0:
        parameters = replace(parameters, trim=max(parameters.trim, math.nextafter(1 / count, 1.0)))
    return replace(settings, parameters=parameters)
