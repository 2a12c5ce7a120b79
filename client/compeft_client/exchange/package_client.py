"""PackageClient: push packed experts to an aggregator and fetch them, byte for byte. No rounds, no Flower, no torch.

    from compeft_client import PackageClient, edge_of

    with PackageClient(edge_of({"site": "/var/lib/compeft-edge"})) as client:
        pushed = client.push("sentiment", Path("my.expert").read_bytes())
        fetched = client.fetch("sentiment")

What arrives is used only after two signatures were checked, the aggregator's and the publisher's, and the file is the one that both
name. A transfer that breaks goes on where it stopped, in another process too.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from compeft_client.exchange.connections import connected
from compeft_client.exchange.state_directory import Memory, StateDirectory
from compeft_client.identity.edge_config import Edge
from compeft_core.errors import InputError
from compeft_proto import answer_checks
from compeft_proto import envelope as dsse
from compeft_proto.aggregator_connection import date
from compeft_proto.chunk_refs import refs_of
from compeft_proto.clock import now_ms
from compeft_proto.errors import ConflictError, UnknownExpertError
from compeft_proto.keys import PublicKey
from compeft_proto.sync_answer import Answer, Progress, SyncDialogue, fetch, no_progress
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope

RACES = 3
"""How often a push is tried again because somebody else pushed at the same moment."""


@dataclass(frozen=True, slots=True)
class Newest:
    """Where an expert is: the version asked about, what it leads to (of a package, its file's SHA-256), and its kind."""

    version: int
    state_digest: bytes
    package: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """A task metric beside a pushed file. `arm`: "synced" for the file itself, "base" for the bare base model, "dense" for the
    uncompressed expert.
    """

    arm: str
    metric: str
    value: float


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push led to. `new` is False if the newest version was this very file already."""

    expert: str
    version: int
    sha256: bytes
    new: bool


@dataclass(frozen=True, slots=True)
class Fetched:
    """One version of a package: the bytes of its expert file, and who published them, by the aggregator's word and their own signature."""

    expert: str
    version: int
    data: bytes
    publisher: str
    public: PublicKey


class PackageClient:
    """One client of one aggregator's packages; a context manager, because it holds a connection."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._connection = connected(edge)

    def __enter__(self) -> "PackageClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def newest(self, expert: str, version: int | None = None, channel: str = "") -> Newest:
        """Where `expert` is, of either kind: one small question, nothing is fetched. Errors: as `fetch`."""
        request = self._request(expert, version, channel)
        request.statement_only = True
        statement = self._connection.retried(lambda: self._heard(request)).statement
        return Newest(statement.want_version, statement.state_digest, statement.package)

    def push(
        self, expert: str, data: bytes, measured: Sequence[Measured] = (), num_examples: int = 0, progress: Progress = no_progress
    ) -> Pushed:
        """Publish the bytes of an expert file as the next version of `expert`; the first one creates it. The same file as the newest
        version adds nothing but metrics.

        Errors: ForbiddenError; ConflictError if `expert` is composed in rounds; the aggregator's refusal of the file; UnreachableError.
        """
        sha256 = hashlib.sha256(data).digest()
        for races_left in reversed(range(RACES)):
            before = self._before(expert)
            same = before is not None and before.state_digest == sha256
            package = pb.Package(
                expert=expert,
                version=0 if before is None else before.version + (not same),
                sha256=sha256,
                chunks=refs_of(data),
                quality=[pb.ArmMetric(arm=m.arm, metric=pb.Metric(name=m.metric, value=m.value)) for m in measured],
                num_examples=num_examples,
                keyid=self._edge.key.keyid,
            )
            try:
                manifest = self._sent(package, data, progress)
            except ConflictError:
                if not races_left:
                    raise
                continue
            answer_checks.check_pushed(manifest, package)
            return Pushed(expert, manifest.version, sha256, not same)
        raise AssertionError("the last try returns or raises")

    def fetch(
        self,
        expert: str,
        version: int | None = None,
        *,
        channel: str = "",
        publisher: PublicKey | None = None,
        go_back: bool = False,
        progress: Progress = no_progress,
    ) -> Fetched:
        """One version of a package (the newest by default), checked; only its own bytes travel. `publisher`: nobody else's will do.

        `go_back` allows an older version than one that was fetched before; a version that is asked for by number is that anyway.
        Errors: UnreachableError, UnknownExpertError, ConflictError if it is composed, ReplayError, UnknownKeyError, SignatureError,
        WrongBaseError, ChunkMismatchError, FormatError.
        """
        directory = self._memory_of(expert)
        with directory.lock():
            known = directory.load().version
            back = go_back or version is not None

            def attempt() -> tuple[pb.VersionManifest, bytes]:
                with self._asked(self._request(expert, version, channel)) as (dialogue, answer):
                    answer_checks.check_not_older(answer.statement, known, back)
                    manifest = answer_checks.package_of(answer, publisher)
                    return manifest, b"".join(fetch(dialogue, directory, [manifest], progress))

            manifest, data = self._connection.retried(attempt)
            answer_checks.check_file(manifest, data)
            directory.save(Memory(version=max(known, manifest.version)))
        publication = manifest.publication
        return Fetched(expert, manifest.version, data, publication.publisher, PublicKey(publication.public_key))

    def _before(self, expert: str) -> Newest | None:
        """The newest version, None if no such expert exists yet."""
        try:
            found = self.newest(expert)
        except UnknownExpertError:
            return None
        if not found.package:
            raise ConflictError(f"{expert} is composed in rounds: push under another name")
        return found

    def _sent(self, package: pb.Package, data: bytes, progress: Progress) -> pb.VersionManifest:
        package.issued_at_ms = now_ms()
        sealed = dsse.seal(self._edge.key, dsse.PACKAGE, package)

        def attempt() -> Envelope:
            with progress(len(data)) as tick:
                return self._connection.submit(sealed, package.chunks, data, tick)

        return self._connection.opened(self._connection.persist(attempt), dsse.VERSION)

    def _request(self, expert: str, version: int | None, channel: str) -> pb.SyncRequest:
        if channel and version is not None:
            raise InputError(f"{expert}: asked for version {version} and for channel {channel}: name one of them")
        return pb.SyncRequest(expert=expert, keyid=self._edge.key.keyid, want_version=version, channel=channel)

    def _heard(self, request: pb.SyncRequest) -> Answer:
        with self._asked(request) as (_, answer):
            return answer

    @contextmanager
    def _asked(self, request: pb.SyncRequest) -> Iterator[tuple[SyncDialogue, Answer]]:
        """The call that answers `request`, and its answer, checked."""
        date(request)
        with self._connection.ask(request) as dialogue:
            answer = self._connection.read(dialogue, request)
            answer_checks.check_statement(answer.statement, request, -1)
            yield dialogue, answer

    def _memory_of(self, expert: str) -> StateDirectory:
        return StateDirectory.of(self._edge.state, expert)
