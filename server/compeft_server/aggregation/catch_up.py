"""Catching up: finds the path to a version that costs a client the fewest bytes; docs/protocol.md, "Catching up".

States are the nodes of a graph, named by their digests. A step is an edge from its parent's state to its own; a whole state (snapshot)
is an edge to its own state from any node. A rollback returns to an earlier state, so a path may use steps older than the rollback. If
the cheapest path costs more than the state itself, the state is coded and signed as a snapshot, once a version, and kept.
"""

import heapq
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compeft_proto import chunk_refs
from compeft_proto import envelope as dsse
from compeft_proto.chunk_refs import refs_of
from compeft_proto.errors import WrongBaseError
from compeft_proto.keys import SigningKey
from compeft_proto.snapshot import encode_snapshot, least_bytes
from compeft_proto.state_steps import reference_of
from compeft_proto.sync_answer import Step as Answered
from compeft_proto.sync_answer import needed
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.aggregation.expert_log import ExpertLog
from compeft_server.chunks.store import ChunkStore
from compeft_server.domain.records import Expert, Snapshot, Version
from compeft_server.ledger.ledger import Ledger

FAR = 4
"""Steps below which a whole state is never worth a look: each costs a fraction of the state, and finding out costs time."""


@dataclass(frozen=True, slots=True)
class Step:
    """One version as an edge between places: `parent` is empty for a whole state, `bytes` what fetching it costs."""

    version: int
    parent: bytes
    state: bytes
    bytes: int


@dataclass(frozen=True, slots=True)
class Way:
    """What a client is to fetch: versions in the order in which they are applied, a whole state to end with, and the chunks of both."""

    versions: tuple[Envelope, ...] = ()
    snapshot: Envelope | None = None
    chunks: frozenset[bytes] = frozenset()

    @property
    def needed(self) -> list[pb.ChunkRef]:
        """The chunks that a client needs of it, in order and each once. It is our own, and signed: whoever fetches it checks that."""
        steps: list[Answered] = [pb.VersionManifest.FromString(version.payload) for version in self.versions]
        if self.snapshot is not None:
            steps.append(pb.SnapshotManifest.FromString(self.snapshot.payload))
        return list({ref.sha256: ref for step in needed(tuple(steps)) for ref in step.chunks}.values())


def cheapest(steps: Sequence[Step], known: Mapping[bytes, int], goal: bytes) -> tuple[int, list[Step]] | None:
    """Return bytes and steps of the cheapest path to state `goal` (Dijkstra's algorithm), or None without a path.

    known: the states to start from, each with the bytes that it costs to reach.
    """
    leaving: dict[bytes, list[Step]] = {}
    for step in steps:
        leaving.setdefault(step.parent, []).append(step)
    costs, came, done = {b"": 0, **known}, dict[bytes, Step](), set[bytes]()
    heap = sorted((cost, place) for place, cost in costs.items())
    while heap:
        cost, place = heapq.heappop(heap)
        if place == goal:
            return cost, _way_back(came, goal)
        if place in done:
            continue
        done.add(place)
        for step in leaving.get(place, ()):
            if cost + step.bytes < costs.get(step.state, cost + step.bytes + 1):
                costs[step.state], came[step.state] = cost + step.bytes, step
                heapq.heappush(heap, (cost + step.bytes, step.state))
    return None


def _way_back(came: Mapping[bytes, Step], goal: bytes) -> list[Step]:
    way, place = list[Step](), goal
    while place in came:
        way.append(came[place])
        place = came[place].parent
    return way[::-1]


def _known(steps: Sequence[Step], genesis: pb.Genesis, have: int) -> dict[bytes, int]:
    """The states that a client has (0 bytes) or can fetch (their bytes). A client without any is always sent version 0."""
    known = {steps[have].state: 0} if have >= 0 else {}
    if genesis.WhichOneof("initial") == "seeded":
        known[steps[0].state] = 0
    elif have < 0:
        known[steps[0].state] = sum(ref.size for ref in genesis.snapshot.chunks)
    return known


def _refs(snapshot: Snapshot) -> Sequence[pb.ChunkRef]:
    """Its chunks. It is our own row, and an earlier key of ours may have signed it: whoever fetches it checks that."""
    return pb.SnapshotManifest.FromString(Envelope.FromString(snapshot.envelope).payload).chunks


class CatchUp:
    """Ways through the expert logs of one aggregator. Many may ask side by side, while no version is appended."""

    def __init__(self, key: SigningKey, store: ChunkStore, ledger: Ledger, log: ExpertLog) -> None:
        self._key, self._store, self._ledger, self._log = key, store, ledger, log
        self._steps: dict[str, list[Step]] = {}
        self._lock = threading.Lock()

    def way(self, expert: Expert, have: int, want: int) -> Way:
        """The cheapest way to version `want` for a client at version `have`, which has nothing at all if that is negative."""
        if have >= want:
            return Way()
        with self._lock:
            steps = self._steps_upto(expert.name, want)
        genesis = self._log.manifest(self._log.version(expert.name, 0)).genesis
        found = cheapest(steps, _known(steps, genesis, have), steps[want].state)
        if found is None:
            raise WrongBaseError(f"no versions lead to {expert.name} version {want}: see `compeft verify-merge {expert.name}`")
        cost, steps = found
        far = len(steps) >= FAR or any(not step.parent for step in steps)
        with self._lock:
            snapshot = self._snapshot(expert, genesis, want, cost) if far else None
        numbers = [] if snapshot else [step.version for step in steps]
        return self._fetched(expert, snapshot, numbers if have >= 0 else [0, *numbers])

    def _steps_upto(self, expert: str, want: int) -> list[Step]:
        """All steps up to version `want`, in order. They never change, so each is read once."""
        known = self._steps.setdefault(expert, [])
        for version in self._ledger.versions(expert, len(known) - 1, want):
            manifest = self._log.manifest(version)
            whole = version.version == 0 or manifest.snapshot
            size = len(version.envelope) + sum(ref.size for ref in manifest.chunks)
            known.append(Step(version.version, b"" if whole else manifest.parent_state_digest, version.state_digest, size))
        return known[: want + 1]

    def _snapshot(self, expert: Expert, genesis: pb.Genesis, want: int, most: int) -> Snapshot | None:
        """The whole state at `want`, if it takes fewer than `most` bytes."""
        kept = self._ledger.snapshot(expert.name, want)
        if kept is None or not all(self._store.has(ref.sha256) for ref in _refs(kept)):
            state, reference = self._log.state(expert, want).vector, reference_of(genesis, expert.layout)
            if least_bytes(state, reference) >= most:
                return None
            kept = self._make(expert.name, self._log.version(expert.name, want), encode_snapshot(state, reference))
        return kept if kept.payload_bytes + len(kept.envelope) < most else None

    def _make(self, expert: str, version: Version, payload: bytes) -> Snapshot:
        for chunk in chunk_refs.chunks(payload):
            self._store.put(chunk)
        manifest = pb.SnapshotManifest(
            expert=expert, version=version.version, state_digest=version.state_digest, chunks=refs_of(payload)
        )
        sealed = dsse.seal(self._key, dsse.SNAPSHOT, manifest)
        made = Snapshot(expert, version.version, sealed.SerializeToString(), len(payload))
        self._ledger.keep_snapshot(made)
        return made

    def _fetched(self, expert: Expert, snapshot: Snapshot | None, numbers: Sequence[int]) -> Way:
        versions = [self._log.version(expert.name, number) for number in numbers]
        refs = [ref for version in versions for ref in self._log.manifest(version).chunks]
        sealed = Envelope.FromString(snapshot.envelope) if snapshot else None
        if snapshot:
            refs += _refs(snapshot)
        return Way(tuple(Envelope.FromString(v.envelope) for v in versions), sealed, frozenset(ref.sha256 for ref in refs))
