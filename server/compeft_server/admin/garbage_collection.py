"""Garbage collection: finds the chunks that the ledger refers to and removes the others. Safe while aggregators run.

Kept: the chunks of every version and of every accepted update (lineage, `verify-merge` and `forget` merge them again), and the
residual after the newest version and after the base of every open round. Older residuals are as long as the whole expert and can be
computed again from what is kept: `verify-merge` does.

Why nothing that is needed goes: the chunks are listed before the ledger is read, and whoever is about to name a chunk in the ledger has
claimed it (store.py), so a chunk that is not named yet and old enough to be removed is one that nobody is about to name.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from compeft_core.errors import FormatError
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.chunks.store import CLAIM_SLACK_MS, ChunkStore
from compeft_server.ledger.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Grace:
    """How long unreferenced data is kept: chunks since their newest claim, parts since their newest byte."""

    chunks_ms: int = 24 * 60 * 60 * 1000
    parts_ms: int = 7 * 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed, or would have been; `young` chunks are named by nobody, but within their grace period."""

    named_chunks: int
    named_bytes: int
    removed_chunks: int
    removed_bytes: int
    young_chunks: int
    removed_parts: int


def collect(store: ChunkStore, ledger: Ledger, now_ms: int, grace: Grace, dry_run: bool = False) -> Collected:
    """Remove chunks that nothing refers to and whose grace period has ended. Errors: FormatError if the ledger cannot be read."""
    stored = list(store.chunks())
    keep = named(ledger)
    garbage = [chunk for chunk in stored if chunk.sha256 not in keep]
    before_ms = now_ms - grace.chunks_ms - CLAIM_SLACK_MS
    old = [chunk for chunk in garbage if chunk.claimed_at_ms < before_ms]
    removed = old if dry_run else [chunk for chunk in old if store.remove(chunk.sha256, before_ms)]
    return Collected(
        named_chunks=len(stored) - len(garbage),
        named_bytes=sum(chunk.size for chunk in stored if chunk.sha256 in keep),
        removed_chunks=len(removed),
        removed_bytes=sum(chunk.size for chunk in removed),
        young_chunks=len(garbage) - len(removed),
        removed_parts=store.remove_parts(now_ms - grace.parts_ms, dry_run),
    )


Manifest = pb.VersionManifest | pb.UpdateManifest | pb.SnapshotManifest


def named(ledger: Ledger) -> set[bytes]:
    """The SHA-256 of every chunk that is kept. Whatever else comes to name chunks in the ledger must be added here."""
    found: set[bytes] = set()
    for expert in ledger.experts():
        found.update(_residuals(ledger, expert))
        for envelope in ledger.version_envelopes(expert):
            found.update(_chunks(pb.VersionManifest, envelope))
        for envelope in ledger.submission_envelopes(expert):
            found.update(_chunks(pb.UpdateManifest, envelope))
        for envelope in ledger.snapshot_envelopes(expert):
            found.update(_chunks(pb.SnapshotManifest, envelope))
    return found


def _residuals(ledger: Ledger, expert: str) -> Iterable[bytes]:
    bases = {r.base_version for r in ledger.rounds(expert) if r.closed_at_ms is None} | {ledger.head(expert)}
    return [
        sha256
        for base in bases
        for version in ledger.versions(expert, base - 1, base)
        for sha256 in (*version.residual, *version.moments)
    ]


def _chunks(kind: type[Manifest], envelope: bytes) -> list[bytes]:
    """The chunks of a manifest that was verified when it was recorded."""
    try:
        return [ref.sha256 for ref in kind.FromString(Envelope.FromString(envelope).payload).chunks]
    except DecodeError as error:
        raise FormatError(
            "the ledger holds a manifest that does not parse: nothing was removed, restore it from a backup"
        ) from error
