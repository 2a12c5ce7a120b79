"""What a report says beyond the ledger: a price, measures of an expert pool, and what other densities would cost.

A size at another density is that of a real encoding of the expert's own layout, at positions drawn uniformly, by the codec `rice`. Real
experts have patterns, so codec `context` needs a sixth to a tenth less. Of a package the layout is that of its newest file, and the
size at the density in use is that of the file itself. The task metric at another density is unknown until it is measured.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from compeft_core import Compression, Layout, encode
from compeft_core.compress import Ternary, Update
from compeft_core.errors import CompeftError, FormatError
from compeft_proto import envelope as dsse
from compeft_proto.convert import compression_from_proto
from compeft_proto.expert_file import Opened, read_start
from compeft_proto.keys import PublicKey
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.chunks.store import ChunkStore
from compeft_server.domain.price import Energy, Price
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.lookups.totals import Summaries
from compeft_server.privacy.account import ExpertAccount

DENSITIES = (0.01, 0.02, 0.05, 0.10, 0.20)
LARGEST_ENCODED = 2**24
"""Of a larger layout this many parameters are encoded and the size is scaled up: blocks of 65,536 are coded apart from each other."""

SAME_DENSITY = 0.002
"""A file that keeps a share this close to a density has that density: a share of few parameters is rounded."""


@dataclass(frozen=True, slots=True)
class DensityRow:
    """One update, or one file, at a density. `used` says where it is in use, empty for nowhere."""

    density: float
    payload_bytes: int
    dense_bf16_bytes: int
    used: str


@dataclass(frozen=True, slots=True)
class Pool:
    """What `compeft bench pool -o FILE` measured: experts that fit in 10^9 bytes of memory, and median seconds to switch."""

    device: str
    experts_per_gb: float
    bf16_experts_per_gb: float
    switch_s: float
    bf16_hotswap_s: float


@dataclass(frozen=True, slots=True)
class Extras:
    """Beside a report: a price, a pool, densities, the account of private rounds; whatever is missing is said to be."""

    price: Price | None = None
    pool: Pool | None = None
    densities: tuple[DensityRow, ...] = ()
    energy: Energy | None = None
    privacy: ExpertAccount | None = None


def pool_from_json(text: str) -> Pool:
    """The measures in this text; fields that are not used are left alone. Errors: FormatError that names the field."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the pool's file is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise FormatError("the pool's file must be an object, as `compeft bench pool -o FILE` writes")
    for field in fields(Pool):
        if not _fits(values.get(field.name), field.name == "device"):
            raise FormatError(f"field {field.name} of the pool's file is {str(values.get(field.name))[:40]!a}")
    return Pool(**{field.name: values[field.name] for field in fields(Pool)})


def densities_of(
    ledger: Ledger, expert: str, own: Sequence[PublicKey], store: ChunkStore | None = None
) -> tuple[DensityRow, ...]:
    """What one update of this expert (of a package, one file) costs at DENSITIES and at those in use; of a package only with a store.

    The expert must exist. Nothing is computed of a file that is not coded by a density.
    """
    found = ledger.expert(expert)
    if found is None:
        return ()
    if found.kind == "package":
        manifest = _newest_manifest(ledger, expert, own)
        return () if store is None or manifest is None else _densities_of_file(_opened(store, manifest.chunks))
    used = _in_use(ledger, expert, own)
    chosen = sorted({*DENSITIES, *used})
    return tuple(DensityRow(k, payload_size(found.layout, k), 2 * found.layout.size, used.get(k, "")) for k in chosen)


def payload_size(layout: Layout, density: float) -> int:
    """Bytes of an encoding of this layout with `density` of the ternary part kept, at positions drawn once for all."""
    size = min(layout.ternary_size, LARGEST_ENCODED)
    kept = round(density * size)
    generator = np.random.default_rng(0)
    positions = np.sort(generator.choice(size, kept, replace=False)).astype(np.uint32)
    negative = generator.random(kept) < 0.5
    ends = np.array([size] if size else [], np.int64)
    scales = np.array([1e-3 if kept else 0.0] if size else [], np.float32)
    ternary = Ternary(size, positions, negative, ends, scales)
    encoded = len(encode(Update(ternary, np.zeros(0, np.float32))))
    return math.ceil(encoded * layout.ternary_size / size if size else encoded) + 2 * layout.dense_size


def _densities_of_file(opened: Opened) -> tuple[DensityRow, ...]:
    """The file at each of DENSITIES, and as it is: its density is then the share of the coded parameters that it keeps."""
    parts = opened.manifest.parts
    coded = [p.coding for p in parts if p.coding is not None and p.coding.ternary_size]
    if not coded:
        return ()
    own = sum(c.kept for c in coded) / sum(c.ternary_size for c in coded)
    around, dense = opened.payload_start, 2 * opened.manifest.size

    def size(density: float) -> int:
        return around + sum(payload_size(p.layout, density) if p.coding else p.payload_bytes for p in parts)

    rows = [DensityRow(k, size(k), dense, "") for k in DENSITIES if abs(k - own) > SAME_DENSITY]
    pushed = DensityRow(own, around + sum(p.payload_bytes for p in parts), dense, "as pushed")
    return tuple(sorted([*rows, pushed], key=lambda row: row.density))


def _opened(store: ChunkStore, refs: Sequence[pb.ChunkRef]) -> Opened:
    """The start of a stored expert file; only the chunks that hold it are read."""
    return read_start(io.BufferedReader(_Chunks(store, refs)), sum(ref.size for ref in refs), "the newest file")


class _Chunks(io.RawIOBase):
    """The bytes of some chunks, one after another, each read when it is needed."""

    def __init__(self, store: ChunkStore, refs: Sequence[pb.ChunkRef]) -> None:
        self._left = (store.read(ref.sha256) for ref in refs)
        self._here = memoryview(b"")

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the chunk at hand reaches; 0 at the end."""
        self._here = self._here or memoryview(next(self._left, b""))
        target = memoryview(buffer)
        count = min(len(target), len(self._here))
        target[:count], self._here = self._here[:count], self._here[count:]
        return count


def _in_use(ledger: Ledger, expert: str, own: Sequence[PublicKey]) -> dict[float, str]:
    """Density -> where: of the newest update and the newest version whose signed manifests can be believed."""
    places = {"up": _newest_up(ledger, expert), "down": _newest_down(ledger, expert, own)}
    used: dict[float, str] = {}
    for place, compression in places.items():
        if compression is not None:
            used[compression.density] = "up and down" if compression.density in used else place
    return used


def _newest_manifest(ledger: Ledger, expert: str, own: Sequence[PublicKey]) -> pb.VersionManifest | None:
    """That of the newest version, if it is signed by one of these keys."""
    head = ledger.head(expert)
    (newest,) = ledger.versions(expert, head - 1, head)
    try:
        return dsse.open_envelope(Envelope.FromString(newest.envelope), dsse.any_of(*own), dsse.VERSION) if own else None
    except CompeftError:
        return None


def _newest_down(ledger: Ledger, expert: str, own: Sequence[PublicKey]) -> Compression | None:
    manifest = _newest_manifest(ledger, expert, own)
    if manifest is None or not manifest.HasField("coding"):
        return None
    try:
        return compression_from_proto(manifest.coding.compression)
    except CompeftError:
        return None


def _newest_up(ledger: Ledger, expert: str) -> Compression | None:
    envelope, keyid = Summaries(ledger).newest_update(expert) or (b"", "")
    member = ledger.member(keyid) if keyid else None
    if member is None:
        return None
    try:
        update = dsse.open_envelope(Envelope.FromString(envelope), dsse.only(member.public), dsse.UPDATE)
        return compression_from_proto(update.coding.compression)
    except CompeftError:
        return None


def _fits(value: object, text: bool) -> bool:
    if text:
        return isinstance(value, str) and bool(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
