"""The use of GPUs as members measured it: what their pools of experts report, and what their updates say of training."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from compeft_core.errors import CompeftError
from compeft_proto import envelope as dsse
from compeft_proto.keys import PublicKey
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.domain.pools import PoolUse

SECONDS, GPU_BYTES, HOST_BYTES = "train-seconds", "peak-gpu-bytes", "peak-memory-bytes"
"""Names of metrics that a ClientApp may report with an update."""
NEWEST_UPDATES = 1000
"""Updates that are looked at, the newest."""


@dataclass(frozen=True, slots=True)
class MeasuredPool:
    """A member's pool at its newest report."""

    member: str
    use: PoolUse

    @property
    def times_fewer_bytes(self) -> float | None:
        """bfloat16 / held bytes of the experts in memory; None without any."""
        return self.use.dense_bf16_bytes / self.use.resident_bytes if self.use.resident_bytes else None


@dataclass(frozen=True, slots=True)
class TrainingUse:
    """What updates say of their training: how many, mean seconds, most bytes on the GPU (None: no GPU, or not said) and of the process."""

    updates: int
    mean_seconds: float | None
    peak_gpu_bytes: int | None
    peak_host_bytes: int | None


def measured_pools(pools: Iterable[PoolUse], names: Mapping[str, str]) -> tuple[MeasuredPool, ...]:
    """Each pool with the name of its member, by name."""
    found = [MeasuredPool(names.get(use.keyid, use.keyid[:12]), use) for use in pools]
    return tuple(sorted(found, key=lambda p: (p.member, p.use.pool)))


def training_use(envelopes: Sequence[tuple[bytes, PublicKey]]) -> TrainingUse | None:
    """Over signed updates and the keys of their clients; what is not signed by them is left out. None where no update says anything."""
    metrics = [found for sealed, key in envelopes if (found := _metrics(sealed, key))]
    if not metrics:
        return None
    seconds = [m[SECONDS] for m in metrics if SECONDS in m]
    gpu = max((int(m[GPU_BYTES]) for m in metrics if m.get(GPU_BYTES, 0) > 0), default=None)
    host = max((int(m[HOST_BYTES]) for m in metrics if m.get(HOST_BYTES, 0) > 0), default=None)
    return TrainingUse(len(metrics), math.fsum(seconds) / len(seconds) if seconds else None, gpu, host)


def _metrics(sealed: bytes, key: PublicKey) -> dict[str, float]:
    try:
        update: pb.UpdateManifest = dsse.open_envelope(Envelope.FromString(sealed), dsse.only(key), dsse.UPDATE)
    except CompeftError:
        return {}
    known = (SECONDS, GPU_BYTES, HOST_BYTES)
    return {m.name: m.value for m in update.metrics if m.name in known and math.isfinite(m.value) and 0 <= m.value < 2**63}
