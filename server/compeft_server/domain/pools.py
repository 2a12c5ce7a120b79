"""What a member's pool of experts holds and does, as it reports it. Frozen values and their checks."""

import math
from dataclasses import dataclass

from compeft_core.errors import FormatError, LimitError, NotFiniteError
from compeft_proto.name_checks import check_name
from compeft_proto.v1 import expert_pb2 as pb

MAX_EXPERTS = 128
"""Experts in memory that a report may name."""
MAX_NAME, MAX_DEVICE = 64, 128
DIGEST_BYTES = 32
WHOLE = (
    "started_at_ms",
    "known",
    "resident",
    "resident_bytes",
    "dense_bf16_bytes",
    "capacity_bytes",
    "switches",
    "hits",
    "misses",
)
SECONDS = ("switch_seconds", "decode_seconds")


@dataclass(frozen=True, slots=True)
class InMemory:
    """One expert in a pool's memory: its name there, the SHA-256 of its file in hexadecimal, and the bytes that it takes."""

    name: str
    sha256: str
    held_bytes: int


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A pool at one time. Counts are since `started_at_ms`. known: experts that it can switch to; resident: those in memory; hits, misses:
    switches to an expert in memory, and to one that was read from its file; device_memory_bytes: most that the process allocated on the
    device, 0 if not measured; dense_bf16_bytes: the experts in memory as bfloat16.
    """

    at_ms: int
    keyid: str
    pool: str
    engine: str
    device: str
    started_at_ms: int
    known: int
    resident: int
    resident_bytes: int
    dense_bf16_bytes: int
    capacity_bytes: int
    switches: int
    hits: int
    misses: int
    switch_seconds: float
    decode_seconds: float
    device_memory_bytes: int
    experts: tuple[InMemory, ...] = ()

    @property
    def hit_share(self) -> float | None:
        """Share of switches that needed no file; None without a switch."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else None

    @property
    def switch_s(self) -> float | None:
        """Mean seconds of a switch, reading included; None without one."""
        return self.switch_seconds / self.switches if self.switches else None


def pool_use(report: pb.PoolReport, keyid: str, at_ms: int) -> PoolUse:
    """The report of this key as a value. Errors: FormatError, LimitError, NotFiniteError."""
    check_name(report.pool, "pool")
    for what, text, most in (
        ("pool", report.pool, MAX_NAME),
        ("engine", report.engine, MAX_NAME),
        ("device", report.device, MAX_DEVICE),
    ):
        if not 0 < len(text) <= most:
            raise FormatError(f"invalid {what} {text[:40]!a} of a pool: expected 1 to {most} characters")
    if len(report.experts) > MAX_EXPERTS:
        raise LimitError(f"pool {report.pool} names {len(report.experts)} experts, expected at most {MAX_EXPERTS}")
    for expert in report.experts:
        if len(expert.sha256) != DIGEST_BYTES:
            raise FormatError(
                f"expert {expert.name[:40]!a} of pool {report.pool} has a digest of {len(expert.sha256)} bytes, not 32"
            )
    for name in SECONDS:
        value = getattr(report, name)
        if not math.isfinite(value) or value < 0:
            raise NotFiniteError(f"{name} of pool {report.pool} is {value}")
    counts = {name: getattr(report, name) for name in (*WHOLE, *SECONDS)}
    experts = tuple(InMemory(e.name, e.sha256.hex(), e.held_bytes) for e in report.experts)
    return PoolUse(
        at_ms=at_ms,
        keyid=keyid,
        pool=report.pool,
        engine=report.engine,
        device=report.device,
        device_memory_bytes=report.device_memory_bytes,
        experts=experts,
        **counts,
    )
