"""The expert log, read: from rows and chunks back to states. And the one step that extends it, as a pure function.

A state is rebuilt by adding the updates of its versions in order, in float32, and every step is held against its signed digest;
the newest state of each expert is kept in memory. Nothing is written here.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compeft_core import (
    Codec,
    Compression,
    Encoded,
    Layout,
    Merged,
    MergeParameters,
    State,
    Vector,
    add_to,
    bf16,
    choose_and_merge,
    parse,
    state_of,
)
from compeft_core.errors import NotFiniteError
from compeft_core.lru_cache import LruCache
from compeft_core.merging.size_bounds import bounded
from compeft_core.parallel import shares, spread, workers_for
from compeft_core.privacy.clipping import Noise, private_mean
from compeft_core.server_optimizer import Moments, ServerOptimizer, descend, no_moments
from compeft_core.statistics import kept_in_range, limit_variances
from compeft_proto import envelope as dsse
from compeft_proto.base_model import BaseModel, said_with
from compeft_proto.chunk_refs import check_chunk
from compeft_proto.convert import coded, optimizer_from_proto
from compeft_proto.errors import ConflictError, UnknownExpertError
from compeft_proto.keys import PublicKey
from compeft_proto.state_steps import initial_state, next_state
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.chunks.store import ChunkStore
from compeft_server.domain.client_weights import bounded_weights, capped_weights, late_weight
from compeft_server.domain.records import Contribution, Expert, Submission, Version
from compeft_server.ledger.ledger import Ledger

WORKERS = min(8, os.cpu_count() or 1)
"""Threads that the work on one vector is spread over."""
UPDATE_BYTES, STATE_BYTES, CARRIED_BYTES = 2**27, 2**30, 2**28
"""Memory for updates that were checked a moment ago, for the newest states, and for what goes on from the newest merges: with 20 million
parameters 64 updates at a density of 5 %, 13 states, and what goes on from one merge.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """What goes from one version to the next: the state, what compression left behind, and the server optimizer's moments.

    residual: float32 of shape (layout.size,). The moments are of the optimizer of that name.
    """

    state: State
    residual: Vector
    moments: Moments
    optimizer: str

    @property
    def held_bytes(self) -> int:
        """Memory that it takes."""
        return self.state.vector.nbytes + self.residual.nbytes + self.moments.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class VersionStep:
    """One step of an expert log: what is sent, how it was compressed, and what goes on from there."""

    encoded: Encoded
    compression: Compression
    after: Carried


def compose(
    layout: Layout,
    before: Carried,
    merged: Vector,
    optimizer: ServerOptimizer,
    compression: Compression,
    codec: Codec = "context",
    most_bytes: int = 0,
) -> VersionStep:
    """The step that the optimizer makes of `merged`, with as much of it and the residual as `compression` lets through, and `most_bytes`
    if that is not 0.

    Moments of another optimizer are dropped, and so is what would make a variance negative. Errors: as `descend`, `compeft_core.compress`,
    and `compeft_core.budget.filled`; NotFiniteError if the state or what is left behind is beyond float32.
    """
    same = before.optimizer == optimizer.name
    wanted, moments = descend(optimizer, merged, before.moments if same else no_moments(optimizer, layout.size))
    target = wanted + before.residual
    state = before.state.vector
    limit_variances(layout, state, target)
    workers = workers_for(layout.size, WORKERS)
    compression, encoded = coded(layout, kept_in_range(layout, state, target), compression, codec, workers, most_bytes)
    following = state.copy()
    with np.errstate(over="ignore", invalid="ignore"):  # looked at just below
        add_to(encoded, following, workers=workers)
        add_to(encoded, target, -1.0, workers=workers)
    if not (np.isfinite(following).all() and np.isfinite(target).all()):
        raise NotFiniteError(
            "the next state is not finite in float32: close the round with a smaller coefficient or learning rate, "
            "or roll the expert back first"
        )
    return VersionStep(encoded, compression, Carried(state_of(layout, following), target, moments, optimizer.name))


def kept_bytes(carried: Carried) -> tuple[memoryview, memoryview]:
    """Residual and moments as the store keeps them: little-endian float32."""
    residual, moments = (values.astype("<f4", copy=False).reshape(-1) for values in (carried.residual, carried.moments))
    return residual.view(np.uint8).data, moments.view(np.uint8).data


class ExpertLog:
    """States, residuals and manifests of one aggregator, whose own key is `public`, and before that one of `earlier`."""

    def __init__(self, public: PublicKey, store: ChunkStore, ledger: Ledger, earlier: Sequence[PublicKey] = ()) -> None:
        self._own, self._store, self._ledger = dsse.any_of(public, *earlier), store, ledger
        self._states = LruCache[str, tuple[int, State]](STATE_BYTES, lambda kept: kept[1].vector.nbytes)
        self._carried = LruCache[str, tuple[int, Carried]](CARRIED_BYTES, lambda kept: kept[1].held_bytes)
        self._updates = LruCache[bytes, Encoded](UPDATE_BYTES, lambda encoded: encoded.held_bytes)
        self._experts: dict[str, Expert] = {}
        self._digests: dict[tuple[str, int], bytes] = {}
        self._first: dict[str, pb.VersionManifest] = {}

    def find(self, name: str) -> Expert | None:
        """The expert of this name, if there is one. It never changes, so it is read once."""
        if name not in self._experts and (found := self._ledger.expert(name)) is not None:
            self._experts[name] = found
        return self._experts.get(name)

    def state_digest(self, expert: str, number: int) -> bytes:
        """The digest of the state at a version that is known to exist. It never changes, so it is read once."""
        if (expert, number) not in self._digests:
            self._digests[expert, number] = self.version(expert, number).state_digest
        return self._digests[expert, number]

    def expert(self, name: str) -> Expert:
        """The expert of this name. Errors: UnknownExpertError, which names those there are."""
        found = self.find(name)
        if found is None:
            raise UnknownExpertError(f"no expert {name[:40]!a} here; there are: {', '.join(self._ledger.experts()) or 'none'}")
        return found

    def composed(self, name: str) -> Expert:
        """The expert of this name, if its versions are steps. Errors: UnknownExpertError; ConflictError for a package."""
        found = self.expert(name)
        if found.kind != "composed":
            raise ConflictError(f"{name} is a package: its versions are pushed whole, it has no rounds")
        return found

    def blob(self, refs: Sequence[pb.ChunkRef]) -> bytes:
        """The payload that these chunks make up. Errors: UnknownExpertError, ChunkMismatchError."""
        return b"".join(check_chunk(ref, self._store.read(ref.sha256)) for ref in refs)

    def version(self, expert: str, number: int) -> Version:
        """One version that is known to exist."""
        return self._ledger.versions(expert, number - 1, number)[0]

    def manifest(self, version: Version) -> pb.VersionManifest:
        """What the aggregator signed for this version."""
        return dsse.open_envelope(Envelope.FromString(version.envelope), self._own, dsse.VERSION)

    def first(self, expert: str) -> pb.VersionManifest:
        """The manifest of version 0 of an expert that is known to exist. It never changes, so it is read once."""
        if expert not in self._first:
            self._first[expert] = self.manifest(self.version(expert, 0))
        return self._first[expert]

    def publisher(self, expert: str) -> str:
        """The keyid that published an expert which is known to exist: of a package, its first version."""
        manifest = self.first(expert)
        if manifest.HasField("publication"):
            return PublicKey(manifest.publication.public_key).keyid
        return manifest.genesis.keyid

    def base_model(self, expert: Expert) -> BaseModel:
        """The base model that an expert is bound to."""
        return said_with(self.first(expert.name).genesis.base_model, expert.base_model_digest)

    def state(self, expert: Expert, number: int) -> State:
        """The state at one version. Errors: WrongBaseError if the log is damaged."""
        at, state = self._states.get(expert.name) or (-1, State(np.empty(0, np.float32), b""))
        if at > number:
            at = -1
        for version in self._ledger.versions(expert.name, at, number):
            manifest = self.manifest(version)
            payload = self.blob(manifest.chunks)
            if version.version == 0:
                state = initial_state(manifest.genesis, expert.layout, payload)
            else:
                state = next_state(manifest, expert.layout, state, payload, workers_for(expert.layout.size, WORKERS))
        self._states.put(expert.name, (number, state))
        return state

    def remember(self, version: Version, carried: Carried) -> None:
        """What goes on from a version that has just been recorded, so that it need not be read back."""
        self._states.put(version.expert, (version.version, carried.state))
        self._carried.put(version.expert, (version.version, carried))

    def residual(self, expert: Expert, number: int) -> Vector:
        """What compression left behind on the downlink up to one version, float32 of shape (layout.size,)."""
        chunks = self.version(expert.name, number).residual
        if not chunks:
            return np.zeros(expert.layout.size, np.float32)
        return np.frombuffer(b"".join(map(self._store.read, chunks)), "<f4").astype(np.float32)

    def carried(self, expert: Expert, number: int) -> Carried:
        """What goes on from one version. After version 0 and after a snapshot, residual and moments are zero."""
        at, known = self._carried.get(expert.name) or (-1, None)
        if known is not None and at == number:
            return known
        version = self.version(expert.name, number)
        moments = np.frombuffer(b"".join(map(self._store.read, version.moments)), "<f4").astype(np.float32)
        return Carried(
            state=self.state(expert, number),
            residual=self.residual(expert, number),
            moments=moments.reshape(moments.size // max(1, expert.layout.size), expert.layout.size),
            optimizer=optimizer_from_proto(self.manifest(version)).name if version.moments else "",
        )

    def contributions(
        self, expert: Expert, accepted: Sequence[Submission], base_version: int, voting: bool = True
    ) -> list[Contribution]:
        """The updates of a round on `base_version` with their weights: as claimed, bounded against the cohort, less for those that
        come late (`client_weights`). voting: the weights decide more than the share of a sum, so large updates weigh less.
        """
        updates = [self.update(s.update_digest) for s in accepted]
        staleness = [base_version - update.base_version for update in updates]
        claimed, scales = [s.weight for s in accepted], [max(update.coding.scales, default=0.0) for update in updates]
        norms = [self._dense_norm(expert, update) for update in updates]
        weights = bounded_weights(claimed, scales, norms) if voting else capped_weights(claimed)
        return [
            Contribution(s.update_digest, s.keyid, s.sequence, late_weight(weight, late), late)
            for s, weight, late in zip(accepted, weights, staleness, strict=True)
        ]

    def merged(
        self,
        expert: Expert,
        inputs: Sequence[Contribution],
        method: str,
        coefficient: float,
        parameters: MergeParameters,
        size_bound: float = 0.0,
        noise: Noise | None = None,
    ) -> Merged:
        """The compressed updates of one round merged by these weights, their values first cut at `size_bound` times the cohort's median
        (0: not cut); or, with `noise`, their private mean. Errors: as `compeft_core.merging.methods`.
        """
        digests, workers = [contribution.update_digest for contribution in inputs], workers_for(expert.layout.size, WORKERS)

        def read(first: int, last: int) -> list[Encoded]:
            return [self._encoded(expert, digest) for digest in digests[first:last]]

        weights = [contribution.weight for contribution in inputs]
        encoded = sum(spread(read, shares(len(digests), workers)), list[Encoded]())
        if noise is not None:
            return Merged(private_mean(encoded, weights, noise, coefficient), (True,) * len(encoded))
        cut = iter(bounded([e for e, weight in zip(encoded, weights, strict=True) if weight], size_bound))
        encoded = [next(cut) if weight else e for e, weight in zip(encoded, weights, strict=True)]
        return choose_and_merge(method, encoded, weights, coefficient=coefficient, parameters=parameters, workers=workers)

    def keep(self, update_digest: bytes, encoded: Encoded) -> None:
        """An update that was just read and checked: the next merge may want it."""
        self._updates.put(update_digest, encoded)

    def _dense_norm(self, expert: Expert, update: pb.UpdateManifest) -> float:
        """The norm of an update's dense part, which ends its payload."""
        size = expert.layout.dense_size
        if not size:
            return 0.0
        payload = self.blob(update.chunks)
        dense = bf16.unpack(np.frombuffer(payload, "<u2", size, len(payload) - 2 * size))
        return math.sqrt(math.fsum(dense.astype(np.float64) ** 2))

    def _encoded(self, expert: Expert, update_digest: bytes) -> Encoded:
        found = self._updates.get(update_digest)
        if found is None:
            found = parse(self.blob(self.update(update_digest).chunks), max_size=expert.layout.size)
        return found

    def update(self, update_digest: bytes) -> pb.UpdateManifest:
        """The update as its client signed it. Errors: UnknownExpertError."""
        submission = self._ledger.submission(update_digest)
        if submission is None:
            raise UnknownExpertError(f"update {update_digest.hex()[:16]} is not in the ledger")
        member = self._ledger.member(submission.keyid)
        lookup = dsse.only(member.public) if member is not None else lambda _: None
        return dsse.open_envelope(Envelope.FromString(submission.envelope), lookup, dsse.UPDATE)
