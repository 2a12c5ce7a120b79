"""Operations on an expert's versions: lineage, verify, roll back, forget a client.

The log only grows: rolling back and forgetting append a version whose chunks are a whole state. Everything is recomputed from what
is stored (signed updates, seeds, residuals by construction), so anybody with the store can check it bit for bit.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compeft_core import METHODS, Compression, State, state_of
from compeft_core.server_optimizer import ServerOptimizer
from compeft_proto.answer_checks import check_file, package_of
from compeft_proto.chunk_refs import chunks, refs_of
from compeft_proto.convert import compression_from_proto, optimizer_from_proto, parameters_from_proto
from compeft_proto.errors import ConflictError, UnknownExpertError, WrongBaseError
from compeft_proto.keys import PublicKey, SigningKey
from compeft_proto.snapshot import decode_snapshot
from compeft_proto.state_steps import check_state, initial_state, next_state, reference_of
from compeft_proto.sync_answer import Answer
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.aggregation.expert_log import Carried, ExpertLog, compose, kept_bytes
from compeft_server.aggregation.private_rounds import noise_of
from compeft_server.aggregation.sealed_version import next_manifest, sealed_version
from compeft_server.chunks.store import ChunkStore
from compeft_server.domain.records import Contribution, Expert, Version
from compeft_server.ledger.ledger import Ledger


@dataclass(frozen=True, slots=True)
class VersionOrigin:
    """Where one version comes from. `contributors` are (name, contribution); a snapshot has none and says of what it is. Only a
    package's has a `publisher`.
    """

    version: int
    state_digest: bytes
    run: str
    round: int
    created_at_ms: int
    payload_bytes: int
    merge_method: str
    merge_parameters: dict[str, float]
    compression: Compression | None
    contributors: tuple[tuple[str, Contribution], ...]
    rolled_back_to: int | None
    forgotten: tuple[str, ...]
    optimizer: ServerOptimizer
    publisher: str = ""


class Versions:
    """The versions of one aggregator's experts, for its operator."""

    def __init__(self, key: SigningKey, store: ChunkStore, ledger: Ledger, earlier: Sequence[PublicKey] = ()) -> None:
        self._key, self._store, self._ledger = key, store, ledger
        self._log = ExpertLog(key.public, store, ledger, earlier)
        self._replayed: dict[str, tuple[int, Carried]] = {}

    def lineage(self, name: str) -> list[VersionOrigin]:
        """Where each version comes from, oldest first. Errors: UnknownExpertError."""
        expert = self._log.expert(name)
        names = {m.public.keyid: m.name for m in self._ledger.members()}
        return [self._origin(version, names) for version in self._ledger.versions(expert.name, -1, self._head(expert))]

    def verify(self, name: str, number: int) -> None:
        """Recompute one version from its stored inputs and hold it against what was signed, bit for bit; then do what a client does that
        fetches it, with the same bytes.

        Errors: WrongBaseError that names the version and both digests; UnknownExpertError if an input or a chunk is gone;
        ChunkMismatchError; for a package also those of `package_of`.
        """
        expert = self._log.expert(name)
        manifest, after = self._manifest(expert, number), None
        self._check_row(expert, number, manifest)
        if expert.kind == "package":
            _check_package(manifest, self._log.blob(manifest.chunks))
            return
        if number == 0:
            initial_state(manifest.genesis, expert.layout, self._log.blob(manifest.chunks))
            return
        if manifest.snapshot:
            state = self._snapshot_of(expert, manifest)
        else:
            after = self._step(expert, manifest, self._carried(expert, number - 1), ())
            self._check_kept(expert, number, after)
            state = after.state
        if state.digest != manifest.state_digest:
            raise WrongBaseError(
                f"{name} version {number} recomputes to {state.digest.hex()[:16]}, signed is {manifest.state_digest.hex()[:16]}"
            )
        if after is not None:
            self._replayed[name] = (number, after)
        self._check_as_a_client(expert, number, manifest)

    def _check_row(self, expert: Expert, number: int, manifest: pb.VersionManifest) -> None:
        """Check that the ledger's row equals the signed manifest. Errors: WrongBaseError."""
        row = self._log.version(expert.name, number)
        told, signed = (expert.name, number, row.state_digest), (manifest.expert, manifest.version, manifest.state_digest)
        if told != signed:
            raise WrongBaseError(
                f"{told[0]} version {told[1]} is state {told[2].hex()[:16]} in the ledger, signed is {signed[0]} version {signed[1]}, "
                f"state {signed[2].hex()[:16]}"
            )

    def _check_as_a_client(self, expert: Expert, number: int, manifest: pb.VersionManifest) -> None:
        """The chunks that clients are sent, of the step and of the whole state if there is one, lead to the signed state. Errors:
        WrongBaseError, UnknownExpertError, ChunkMismatchError, FormatError.
        """
        if number:
            next_state(manifest, expert.layout, self._log.state(expert, number - 1), self._log.blob(manifest.chunks))
        kept = self._ledger.snapshot(expert.name, number)
        if kept is None:
            return
        whole = pb.SnapshotManifest.FromString(Envelope.FromString(kept.envelope).payload)
        if not all(self._store.has(ref.sha256) for ref in whole.chunks):
            return  # it is made again when somebody needs it
        reference = reference_of(self._log.first(expert.name).genesis, expert.layout)
        made = state_of(expert.layout, decode_snapshot(self._log.blob(whole.chunks), reference))
        check_state(expert.name, number, manifest.state_digest, made)

    def _carried(self, expert: Expert, number: int) -> Carried:
        """What went on from one version as it was published: as stored, or from the newest one before it that still is."""
        known = number
        while (carried := self._stored(expert, known)) is None:
            known -= 1
        for at in range(known + 1, number + 1):
            carried = self._step(expert, self._manifest(expert, at), carried, ())
        return carried

    def _stored(self, expert: Expert, number: int) -> Carried | None:
        """None where garbage collection has removed it. Version 0 and snapshots have nothing to remove."""
        at, replayed = self._replayed.get(expert.name, (-1, None))
        try:
            return replayed if at == number else self._log.carried(expert, number)
        except UnknownExpertError:
            return None

    def roll_back(self, name: str, number: int, now_ms: int) -> Version:
        """Append a version with the state of an earlier one. Errors: UnknownExpertError, ConflictError while a round is open."""
        expert = self._log.expert(name)
        if not 0 <= number < self._head(expert):
            raise UnknownExpertError(f"{name} has versions 0 to {self._head(expert)}, the newest is where it is already")
        if expert.kind == "package":
            return self._publish_again(expert, self._manifest(expert, number), now_ms)
        state = self._log.state(expert, number)
        return self._append(expert, state, now_ms, rolled_back_to=number)

    def forget(self, name: str, keyid: str, now_ms: int) -> Version:
        """Append a version as if one client had never contributed, under this key or another of the same name.

        Everybody forgotten before stays forgotten. The other clients' updates are merged as they were sent.
        Errors: UnknownExpertError if it never contributed; ConflictError.
        """
        expert = self._log.expert(name)
        manifests = [self._manifest(expert, v) for v in range(1, self._head(expert) + 1)]
        mine = self._keys_of_same_name(keyid)
        if not any(c.keyid in mine for m in manifests for c in m.contributions):
            raise UnknownExpertError(f"key {keyid} contributed to no version of {name}")
        if any(m.HasField("private_merge") for m in manifests):
            raise ConflictError(
                f"{name} has private versions: merged again with the same noise but without one client, the two would differ by just what "
                "that client sent; publish a new expert without it"
            )
        forgotten = sorted({*mine, *(k for m in manifests for k in m.forgotten)})
        state = self._recompute(expert, self._head(expert), forgotten).state
        return self._append(expert, state, now_ms, forgotten=forgotten)

    def _keys_of_same_name(self, keyid: str) -> set[str]:
        members = self._ledger.members()
        names = {m.name for m in members if m.public.keyid == keyid}
        return {keyid, *(m.public.keyid for m in members if m.name in names)}

    def _origin(self, version: Version, names: dict[str, str]) -> VersionOrigin:
        manifest = self._log.manifest(version)
        contributions = [_contribution(c) for c in manifest.contributions]
        stepped = manifest.HasField("coding")
        return VersionOrigin(
            version=version.version,
            state_digest=version.state_digest,
            run=version.run,
            round=version.round,
            created_at_ms=version.created_at_ms,
            payload_bytes=version.payload_bytes,
            merge_method=manifest.merge_method,
            merge_parameters=_parameters_of(manifest),
            compression=compression_from_proto(manifest.coding.compression) if stepped else None,
            contributors=tuple((names.get(c.keyid, "?"), c) for c in contributions),
            rolled_back_to=manifest.rolled_back_to if manifest.HasField("rolled_back_to") else None,
            forgotten=tuple(manifest.forgotten),
            optimizer=optimizer_from_proto(manifest),
            publisher=manifest.publication.publisher,
        )

    def _check_kept(self, expert: Expert, number: int, after: Carried) -> None:
        """What the aggregator keeps for the next merge is what this one left. Errors: WrongBaseError."""
        version = self._log.version(expert.name, number)
        for what, data, kept in zip(("residual", "moments"), kept_bytes(after), (version.residual, version.moments), strict=True):
            if tuple(ref.sha256 for ref in refs_of(data)) != kept:
                raise WrongBaseError(f"{expert.name} version {number} recomputes to other {what} than the aggregator keeps")

    def _recompute(self, expert: Expert, number: int, forgotten: Collection[str]) -> Carried:
        """What goes on from one version, had the `forgotten` keys never contributed."""
        carried = self._log.carried(expert, 0)
        for at in range(1, number + 1):
            manifest = self._manifest(expert, at)
            if manifest.HasField("rolled_back_to"):
                earlier = self._recompute(expert, manifest.rolled_back_to, forgotten)
                carried = replace(earlier, residual=np.zeros_like(earlier.residual), moments=earlier.moments[:0], optimizer="")
            elif not manifest.snapshot:
                carried = self._step(expert, manifest, carried, forgotten)
        return carried

    def _step(self, expert: Expert, manifest: pb.VersionManifest, before: Carried, forgotten: Collection[str]) -> Carried:
        """Recompute one merge from its stored inputs; where nobody is left, nothing changes, moments included."""
        inputs = [_contribution(c) for c in manifest.contributions if c.keyid not in forgotten]
        if not inputs:
            return before
        parameters = parameters_from_proto(manifest)
        if forgotten:
            parameters = parameters.within(len(inputs), METHODS[manifest.merge_method].takes)
        method, coefficient = manifest.merge_method, manifest.coefficient
        noise = noise_of(
            manifest.private_merge if manifest.HasField("private_merge") else None,
            self._ledger.private.round(expert.name, manifest.run, manifest.round),
        )
        merged = self._log.merged(expert, inputs, method, coefficient, parameters, manifest.size_bound, noise)
        if not forgotten and [c.left_out for c in inputs] != [not chosen for chosen in merged.chosen]:
            raise WrongBaseError(
                f"{expert.name} version {manifest.version} names other updates as left out than {manifest.merge_method} chooses"
            )
        compression = compression_from_proto(manifest.coding.compression)
        return compose(expert.layout, before, merged.vector, optimizer_from_proto(manifest), compression).after

    def _snapshot_of(self, expert: Expert, manifest: pb.VersionManifest) -> State:
        if manifest.HasField("rolled_back_to"):
            return self._log.state(expert, manifest.rolled_back_to)
        return self._recompute(expert, manifest.version - 1, list(manifest.forgotten)).state

    def _publish_again(self, expert: Expert, old: pb.VersionManifest, now_ms: int) -> Version:
        """Append the file of an earlier version of a package as the next one: its publisher's signature stays."""
        head = self._log.version(expert.name, self._head(expert))
        manifest = next_manifest(expert, head, old.state_digest, old.chunks, now_ms)
        manifest.publication.CopyFrom(old.publication)
        manifest.rolled_back_to = old.rolled_back_to if old.HasField("rolled_back_to") else old.version
        version = sealed_version(self._key, manifest)
        self._ledger.append(version)
        return version

    def _append(
        self, expert: Expert, state: State, now_ms: int, *, rolled_back_to: int | None = None, forgotten: Sequence[str] = ()
    ) -> Version:
        """A version whose chunks are the whole `state`; the last two say what made it."""
        if any(r.closed_at_ms is None for r in self._ledger.rounds(expert.name)):
            raise ConflictError(f"a round of {expert.name} is open: wait until its conductor has closed it")
        head, payload = self._log.version(expert.name, self._head(expert)), state.vector.astype("<f4").tobytes()
        for chunk in chunks(payload):
            self._store.put(chunk)
        manifest = next_manifest(expert, head, state.digest, refs_of(payload), now_ms)
        manifest.snapshot = True
        manifest.forgotten.extend(forgotten)
        if rolled_back_to is not None:
            manifest.rolled_back_to = rolled_back_to
        version = sealed_version(self._key, manifest)
        self._ledger.append(version)
        return version

    def _manifest(self, expert: Expert, number: int) -> pb.VersionManifest:
        if not 0 <= number <= self._head(expert):
            raise UnknownExpertError(f"{expert.name} has versions 0 to {self._head(expert)}, not {number}")
        return self._log.manifest(self._log.version(expert.name, number))

    def _head(self, expert: Expert) -> int:
        return self._ledger.head(expert.name)


def _check_package(manifest: pb.VersionManifest, data: bytes) -> None:
    """What a client checks of a package's version. Errors: as `package_of` and `check_file`."""
    statement = pb.SyncStatement(
        expert=manifest.expert, want_version=manifest.version, state_digest=manifest.state_digest, package=True
    )
    check_file(package_of(Answer(statement, (manifest,)), None), data)


def _parameters_of(manifest: pb.VersionManifest) -> dict[str, float]:
    """The parameters that the merge method took, by name."""
    method, parameters = METHODS.get(manifest.merge_method), parameters_from_proto(manifest)
    return {name: getattr(parameters, name) for name in sorted(method.takes)} if method else {}


def _contribution(c: pb.Contribution) -> Contribution:
    return Contribution(c.update_digest, c.keyid, c.sequence, c.weight, c.staleness, c.left_out)
