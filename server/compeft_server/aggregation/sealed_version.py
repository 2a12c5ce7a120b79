"""Version manifests and the rows that hold them: every version that an aggregator publishes is made here."""

from collections.abc import Iterable, Sequence

from compeft_proto import envelope as dsse
from compeft_proto.keys import SigningKey
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.domain.records import Expert, Version


def next_manifest(
    expert: Expert, before: Version | None, state_digest: bytes, refs: Iterable[pb.ChunkRef], now_ms: int
) -> pb.VersionManifest:
    """The manifest of the version after `before` (None: version 0) with what every one says; the caller adds what made it.

    refs: the chunks of its payload. The manifest of a package has no digests of base model, layout and adapter configuration.
    """
    manifest = pb.VersionManifest(expert=expert.name, state_digest=state_digest, chunks=refs, issued_at_ms=now_ms)
    if before is not None:
        manifest.version, manifest.parent_state_digest = before.version + 1, before.state_digest
    if expert.kind == "composed":
        manifest.base_model_digest, manifest.layout_digest = expert.base_model_digest, expert.layout.digest
        manifest.adapter_config_digest = expert.adapter_config_digest
    return manifest


def sealed_version(
    key: SigningKey,
    manifest: pb.VersionManifest,
    *,
    residual: Sequence[bytes] = (),
    moments: Sequence[bytes] = (),
    merge_seconds: float = 0.0,
) -> Version:
    """The row of a version: its manifest sealed with `key`, and what the manifest says of number, state, round, size and time.

    residual, moments: SHA-256 of the chunks of the downlink residual and of the server optimizer's moments after this version.
    """
    return Version(
        expert=manifest.expert,
        version=manifest.version,
        envelope=dsse.seal(key, dsse.VERSION, manifest).SerializeToString(),
        state_digest=manifest.state_digest,
        residual=tuple(residual),
        run=manifest.run,
        round=manifest.round,
        payload_bytes=sum(ref.size for ref in manifest.chunks),
        merge_seconds=merge_seconds,
        created_at_ms=manifest.issued_at_ms,
        moments=tuple(moments),
    )
