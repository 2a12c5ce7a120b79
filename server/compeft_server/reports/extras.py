"""What a report says beyond the ledger: a price, measures of an expert pool, and what other densities would cost.

A size at another density is that of a real encoding: so many entries of the expert's own layout, at positions without any pattern, by
the codec `rice`. Real experts have patterns, so codec `context` needs a sixth to a tenth less. What such a density does to the
task metric is not known until it is measured, and the report says so.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import sqlalchemy as sa

from compeft_core import Compression, Layout, encode
from compeft_core.compress import Ternary, Update
from compeft_core.errors import CompeftError, FormatError
from compeft_proto import envelope as dsse
from compeft_proto.convert import compression_from_proto
from compeft_proto.keys import PublicKey
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.domain.price import Price
from compeft_server.ledger.ledger import Ledger
from compeft_server.ledger.schema import submissions

DENSITIES = (0.01, 0.05, 0.10, 0.20)
LARGEST_ENCODED = 2**24
"""Of a larger layout this many parameters are encoded and the size is scaled up: blocks of 65,536 are coded apart from each other."""


@dataclass(frozen=True, slots=True)
class DensityRow:
    """One update at a density. `used` says where the newest update or version has this density, empty for nowhere."""

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
    """Beside a report: a price, a pool, densities; whatever is missing is said to be."""

    price: Price | None = None
    pool: Pool | None = None
    densities: tuple[DensityRow, ...] = ()


def pool_from_json(text: str) -> Pool:
    """The measures in this text; fields that are not used are left alone. Errors: FormatError that names the field."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise FormatError(f"the pool's file is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise FormatError("the pool's file must be an object, as `compeft bench pool -o FILE` writes")
    for field in fields(Pool):
        if not _fits(values.get(field.name), field.name == "device"):
            raise FormatError(f"field {field.name} of the pool's file is {str(values.get(field.name))[:40]!a}")
    return Pool(**{field.name: values[field.name] for field in fields(Pool)})


def densities_of(ledger: Ledger, expert: str, own: Sequence[PublicKey]) -> tuple[DensityRow, ...]:
    """What an update of this expert costs at DENSITIES and at those in use. The expert must exist."""
    found = ledger.expert(expert)
    if found is None:
        return ()
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


def _in_use(ledger: Ledger, expert: str, own: Sequence[PublicKey]) -> dict[float, str]:
    """Density -> where: of the newest update and the newest version whose signed manifests can be believed."""
    places = {"up": _newest_up(ledger, expert), "down": _newest_down(ledger, expert, own)}
    used: dict[float, str] = {}
    for place, compression in places.items():
        if compression is not None:
            used[compression.density] = "up and down" if compression.density in used else place
    return used


def _newest_down(ledger: Ledger, expert: str, own: Sequence[PublicKey]) -> Compression | None:
    head = ledger.head(expert)
    (newest,) = ledger.versions(expert, head - 1, head)
    if not own:
        return None
    try:
        manifest = dsse.open_envelope(Envelope.FromString(newest.envelope), dsse.any_of(*own), dsse.VERSION)
        return compression_from_proto(manifest.coding.compression) if manifest.HasField("coding") else None
    except CompeftError:
        return None


def _newest_up(ledger: Ledger, expert: str) -> Compression | None:
    c = submissions.c
    query = sa.select(c.envelope, c.keyid).where(c.expert == expert).order_by(c.accepted_at_ms.desc()).limit(1)
    rows = ledger.select(query)
    member = ledger.member(rows[0].keyid) if rows else None
    if member is None:
        return None
    try:
        update = dsse.open_envelope(Envelope.FromString(rows[0].envelope), dsse.only(member.public), dsse.UPDATE)
        return compression_from_proto(update.coding.compression)
    except CompeftError:
        return None


def _fits(value: object, text: bool) -> bool:
    if text:
        return isinstance(value, str) and bool(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
