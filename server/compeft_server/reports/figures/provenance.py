"""What a version's signed manifest says about where it comes from. It is shown only if the aggregator's signature fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from compeft_core import Compression
from compeft_core.errors import CompeftError
from compeft_proto import envelope as dsse
from compeft_proto.convert import compression_from_proto
from compeft_proto.keys import PublicKey, public_keys_from_pem
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.identity.aggregator_keys import KEY_FILE


@dataclass(frozen=True, slots=True)
class Contributor:
    """One update that went into a version. staleness: how many versions older its base was; left_out: the merge method chose others."""

    name: str
    keyid: str
    update_digest: str
    sequence: int
    weight: float
    staleness: int = 0
    left_out: bool = False


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a version comes from. `doubt` says why nothing of it can be shown; digests are hexadecimal."""

    kind: str = ""
    doubt: str = ""
    merge_method: str = ""
    coefficient: float = 1.0
    codec: str = ""
    compression: Compression | None = None
    kept: int = 0
    parameters: int = 0
    scales: tuple[float, ...] = ()
    state_digest: str = ""
    parent_state_digest: str = ""
    contributors: tuple[Contributor, ...] = ()


def own_public_keys(data: Path) -> tuple[PublicKey, ...]:
    """The aggregator's public key and those before it, newest first; none if absent yet."""
    path = (data / KEY_FILE).with_suffix(".pub")
    return public_keys_from_pem(path.read_bytes(), str(path)) if path.exists() else ()


def read_origin(envelope: bytes, keys: Sequence[PublicKey], names: Mapping[str, str]) -> Provenance:
    """What this sealed VersionManifest says; `names` are of keys."""
    if not keys:
        return Provenance(doubt="the aggregator's public key is not here")
    try:
        manifest = dsse.open_envelope(Envelope.FromString(envelope), dsse.any_of(*keys), dsse.VERSION)
    except (CompeftError, DecodeError) as error:
        return Provenance(doubt=f"its manifest cannot be trusted: {error}")
    return _origin(manifest, names)


def _origin(manifest: pb.VersionManifest, names: Mapping[str, str]) -> Provenance:
    coding = manifest.coding
    return Provenance(
        kind=_kind(manifest),
        merge_method=manifest.merge_method,
        coefficient=manifest.coefficient,
        codec=coding.codec,
        compression=compression_from_proto(coding.compression) if manifest.HasField("coding") else None,
        kept=coding.kept,
        parameters=coding.ternary_size + coding.dense_size,
        scales=tuple(coding.scales),
        state_digest=manifest.state_digest.hex(),
        parent_state_digest=manifest.parent_state_digest.hex(),
        contributors=tuple(
            Contributor(
                names.get(c.keyid, "not enrolled"),
                c.keyid,
                c.update_digest.hex(),
                c.sequence,
                c.weight,
                c.staleness,
                c.left_out,
            )
            for c in manifest.contributions
        ),
    )


def _kind(manifest: pb.VersionManifest) -> str:
    if manifest.HasField("genesis"):
        return "start from a seed" if manifest.genesis.WhichOneof("initial") == "seeded" else "start from a snapshot"
    if manifest.HasField("rolled_back_to"):
        return f"rolled back to version {manifest.rolled_back_to}"
    if manifest.HasField("publication"):
        return "push"
    if manifest.forgotten:
        return f"merged again without {len(manifest.forgotten)} client{'' if len(manifest.forgotten) == 1 else 's'}"
    return "snapshot" if manifest.snapshot else "merge"
