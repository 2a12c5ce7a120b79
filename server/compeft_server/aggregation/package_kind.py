"""Packages: experts whose versions are packed files, pushed by a publisher. Checked, appended and handed out as they came.

The publisher's own envelope is kept in each version's manifest, so whoever fetches the file can check who made it. The same file
again is the same version. A file is never stored before all of it was checked.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from compeft_core import layout_of
from compeft_core.errors import FormatError, LimitError
from compeft_proto import envelope as dsse
from compeft_proto.chunk_refs import check_digest, check_refs
from compeft_proto.errors import ConflictError, ForbiddenError
from compeft_proto.expert_file import check_file
from compeft_proto.expert_manifest import Manifest
from compeft_proto.name_checks import check_name
from compeft_proto.round_task import NOBODY_SAYS
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.aggregation.catch_up import Way
from compeft_server.aggregation.expert_log import ExpertLog
from compeft_server.aggregation.message_kind import MessageKind, Offer, Record
from compeft_server.aggregation.sealed_version import next_manifest, sealed_version
from compeft_server.chunks.chunked_payload import Chunked
from compeft_server.domain import admission
from compeft_server.domain.limits import Limits
from compeft_server.domain.policy import EVERY
from compeft_server.domain.records import Expert, Member, Quality, Transfer, Version

LOOKED_AT = 8
"""Newest versions of a package whose chunks a publisher need not send again."""


PackageOffer = Offer[pb.Package, Manifest]


class PackageKind(MessageKind[pb.Package, Manifest]):
    """Pushed packages, answered by the sealed version. Nobody else publishes meanwhile."""

    payload_type = dsse.PACKAGE

    def refs(self, message: pb.Package) -> Sequence[pb.ChunkRef]:
        """The chunks of its file."""
        return message.chunks

    def admit(self, offer: PackageOffer) -> Envelope | Record[Manifest]:
        """Steps 5 and 6, by the manifest alone. The version again, with its metrics recorded, if this very file is in already.

        Errors: ExpiredError, ForbiddenError, FormatError, LimitError, NotFiniteError; ConflictError if the name is that of a
        composed expert, or the version is not the next one.
        """
        package, member, limits, now = offer.message, offer.member, self._parts.limits, self._parts.now_ms()
        admission.admit_time(package.issued_at_ms, package.issued_at_ms + limits.max_age_ms, now, limits)
        admission.admit_member(member, package.keyid, "edge", "conductor")
        _check_claims(package, limits)
        newest = self._admit_publisher(package.expert, member)
        if (
            newest is not None
            and newest.state_digest == package.sha256
            and package.version in (newest.version, newest.version + 1)
        ):
            self._record_metrics(package, newest, member)
            return Envelope.FromString(newest.envelope)
        following = 0 if newest is None else newest.version + 1
        if package.version != following:
            raise ConflictError(f"{package.expert} goes on with version {following}, not {package.version}: push again")
        return lambda manifest: self._publish(offer, manifest)

    def check(self, offer: PackageOffer, payload: Chunked) -> Manifest:
        """Step 7: the bytes are the file that was signed, and that is an expert file, to the last payload.

        Errors: FormatError, LimitError, LayoutMismatchError, NotFiniteError.
        """
        package, data = offer.message, payload[:]
        found = hashlib.sha256(data).digest()
        if found != package.sha256:
            raise FormatError(f"package names file {package.sha256.hex()[:16]}, its chunks make {found.hex()[:16]}")
        return check_file(data, f"{package.expert} version {package.version}", self._parts.limits.max_parameters)

    def described(self, transfer: Transfer, message: pb.Package) -> Transfer:
        """The expert's name and the version."""
        return replace(transfer, expert=message.expert, version=message.version)

    def parameters(self, _message: pb.Package, answer: Envelope) -> int:
        """Those that the file unpacks to, as the sealed version says."""
        return pb.VersionManifest.FromString(answer.payload).publication.parameters

    def _publish(self, offer: PackageOffer, manifest: Manifest) -> Envelope:
        """Steps 8 to 10 for a file that was checked and whose chunks are stored: the next version, sealed."""
        package, member = offer.message, offer.member
        expert = self._parts.ledger.expert(package.expert)
        made = expert or _first_of(package.expert, manifest)
        publication = pb.Publication(
            package=Envelope.FromString(offer.envelope),
            publisher=member.name,
            public_key=member.public.raw,
            parameters=manifest.size,
        )
        version = self._version(made, package, publication)
        if expert is None:
            self._parts.ledger.create(made, version, package.keyid)
        else:
            self._parts.ledger.append(version, package.keyid)
        self._record_metrics(package, version, member)
        return Envelope.FromString(version.envelope)

    def readable_chunks(self, offer: PackageOffer) -> frozenset[bytes]:
        """The chunks of the newest LOOKED_AT versions of the package's name that this member may fetch."""
        package, member = offer.message, offer.member
        if self._parts.ledger.expert(package.expert) is None:
            return frozenset()
        head = self._parts.ledger.head(package.expert)
        versions = self._parts.ledger.versions(package.expert, head - LOOKED_AT, head)
        may = [v for v in versions if self._parts.access.decide(member.name, member.role, v.expert, "fetch", v.version).allowed]
        return frozenset(ref.sha256 for version in may for ref in self._parts.log.manifest(version).chunks)

    def _admit_publisher(self, name: str, member: Member) -> Version | None:
        """Step 6, may they publish: the newest version, None of a package that is new. Errors: ForbiddenError, ConflictError."""
        expert = self._parts.ledger.expert(name)
        if expert is None:
            self._parts.access.require_name(member, name)
            return None
        decision = self._parts.access.require(member, name, "publish", self._parts.ledger.head(name))
        owner = self._parts.access.owner(name)
        if owner != member.name and decision.rule is not None and decision.rule.expert == EVERY:
            raise ForbiddenError(
                f"{member.name!r} may submit updates to every expert, but {name[:40]} was pushed by {owner!r}: "
                f"its operator must name it (compeft policy allow {name[:40]} {member.name} --publish)"
            )
        if expert.kind != "package":
            raise ConflictError(f"{name} is composed in rounds: push under another name")
        return self._parts.log.version(name, self._parts.ledger.head(name))

    def _version(self, expert: Expert, package: pb.Package, publication: pb.Publication) -> Version:
        before = self._parts.log.version(expert.name, package.version - 1) if package.version else None
        manifest = next_manifest(expert, before, package.sha256, package.chunks, self._parts.now_ms())
        manifest.publication.CopyFrom(publication)
        return sealed_version(self._parts.key, manifest)

    def _record_metrics(self, package: pb.Package, version: Version, member: Member) -> None:
        """The metrics that came with a package: its publisher states them, nobody here has measured them."""
        for entry in package.quality:
            arm = admission.admit_metric(entry.arm, entry.metric)
            self._parts.ledger.record_quality(
                Quality(
                    at_ms=self._parts.now_ms(),
                    expert=package.expert,
                    run="",
                    round=0,
                    version=version.version,
                    arm=arm,
                    client="",
                    metric=entry.metric.name,
                    value=entry.metric.value,
                    num_examples=package.num_examples,
                    reporter=member.name,
                )
            )


def package_way(log: ExpertLog, expert: Expert, have: int, want: int) -> Way:
    """What leads to a version of a package: its own bytes and nothing else."""
    if have == want:
        return Way()
    version = log.version(expert.name, want)
    chunks = frozenset(ref.sha256 for ref in log.manifest(version).chunks)
    return Way(versions=(Envelope.FromString(version.envelope),), chunks=chunks)


def _first_of(name: str, manifest: Manifest) -> Expert:
    """A new package as its first file describes it. A tensor's name says its file, for two files may have one of the same name."""
    shapes = {f"{part.file}/{t.name}": t.shape for part in manifest.parts for t in part.layout.tensors}
    layout = layout_of(shapes, dense=list(shapes))
    return Expert(name, NOBODY_SAYS, hashlib.sha256(manifest.config).digest(), layout, "package")


def _check_claims(package: pb.Package, limits: Limits) -> None:
    check_name(package.expert, "expert")
    check_digest(package.sha256, "package")
    if not package.chunks:
        raise FormatError(f"package {package.expert} names no chunk")
    check_refs(package.chunks, limits.max_payload_bytes)
    if len(package.quality) > admission.MAX_METRICS or package.num_examples > limits.max_examples:
        raise LimitError(
            f"package has {len(package.quality)} metrics over {package.num_examples} examples, "
            f"expected at most {admission.MAX_METRICS} and {limits.max_examples}"
        )
    for entry in package.quality:
        admission.admit_metric(entry.arm, entry.metric)
