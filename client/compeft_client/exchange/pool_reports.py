"""What a pool of experts holds and does, told to an aggregator, so that its report shows the use of a GPU as it was measured there.

    from compeft_client import PoolUsage, report_pool, reporting

    def usage() -> PoolUsage:                   # or ExpertPool's own
        return pool.usage()

    with reporting(edge, usage, every_s=60):    # a report leaves now, each minute, and at the end
        serve()
    report_pool(edge, usage())                  # one report

Counters only: no prompt, no row and no weight is in a report. An aggregator that is away, or refuses, is asked again at the next report.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from compeft_client.exchange.connections import connected
from compeft_client.identity.edge_config import Edge
from compeft_core.errors import CompeftError
from compeft_proto import envelope as dsse
from compeft_proto.aggregator_connection import NONCE_BYTES, AggregatorConnection
from compeft_proto.clock import now_ms
from compeft_proto.errors import ReplayError
from compeft_proto.v1 import expert_pb2 as pb

EVERY_S = 60.0
MAX_EXPERTS = 128
"""Experts in memory that a report names: those used last."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResidentFile:
    """One expert in memory: its name in the pool, the SHA-256 (32 bytes) of its file, and the bytes that it takes."""

    name: str
    sha256: bytes
    held_bytes: int


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """A pool's counters since it began. engine: what serves; known: experts that it can switch to; experts: those in memory, the one used
    longest ago first; dense_bf16_bytes: those in memory as bfloat16; hits, misses: switches to an expert in memory, and to one read from
    its file; seconds of all switches, and of reading and decoding; device_memory_bytes: most allocated on the device, 0: not measured.
    """

    engine: str
    device: str
    started_at_ms: int
    known: int
    experts: tuple[ResidentFile, ...]
    dense_bf16_bytes: int
    capacity_bytes: int
    switches: int
    hits: int
    misses: int
    switch_seconds: float
    decode_seconds: float
    device_memory_bytes: int


def report_pool(edge: Edge, usage: PoolUsage, pool: str = "default") -> None:
    """Tell the aggregator once. Errors: UnreachableError; the aggregator's refusal."""
    connection = connected(edge)
    try:
        _tell(connection, usage, pool)
    finally:
        connection.close()


@contextmanager
def reporting(edge: Edge, usage: Callable[[], PoolUsage], pool: str = "default", every_s: float = EVERY_S) -> Iterator[None]:
    """Tell the aggregator now, every `every_s` seconds, and at the end. What fails is logged and tried again with newer counters."""
    stop = threading.Event()

    def tell() -> None:
        try:
            report_pool(edge, usage(), pool)
        except CompeftError as error:
            log.warning("pool %s is not reported: %s", pool, error)

    def repeat() -> None:
        tell()
        while not stop.wait(every_s):
            tell()

    thread = threading.Thread(target=repeat, name="pool-reports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        tell()


def _tell(connection: AggregatorConnection, usage: PoolUsage, pool: str) -> None:
    report = pb.PoolReport(
        keyid=connection.key.keyid,
        nonce=secrets.token_bytes(NONCE_BYTES),
        issued_at_ms=now_ms(),
        pool=pool,
        engine=usage.engine,
        device=usage.device,
        started_at_ms=usage.started_at_ms,
        known=usage.known,
        resident=len(usage.experts),
        resident_bytes=sum(expert.held_bytes for expert in usage.experts),
        dense_bf16_bytes=usage.dense_bf16_bytes,
        capacity_bytes=usage.capacity_bytes,
        switches=usage.switches,
        hits=usage.hits,
        misses=usage.misses,
        switch_seconds=usage.switch_seconds,
        decode_seconds=usage.decode_seconds,
        device_memory_bytes=usage.device_memory_bytes,
        experts=[pb.ResidentExpert(name=e.name, sha256=e.sha256, held_bytes=e.held_bytes) for e in usage.experts[-MAX_EXPERTS:]],
    )
    answer = connection.observe(dsse.seal(connection.key, dsse.POOL_REPORT, report), dsse.RECORDED)
    if answer.nonce != report.nonce:
        raise ReplayError("the aggregator's answer is to another report")
