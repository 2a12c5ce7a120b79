"""How long an aggregator with a long expert log takes to serve: `python -m benchmarks.startup [--versions 10000]`.

Fills a data directory with an expert of that many versions, each a real signed step, and starts `compeft serve` on it as a process,
three times: seconds from the start of the process until it answers a health check, and the processor seconds in them, beside the
same with an expert of one version (the peer: the ratio is what the log costs). Then how long the first client takes that lacks one
version, and one that lacks them all. Prints a table, and on the last line one JSON object of the same figures. A minute or two.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
import psutil
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc

from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.identity.edge_config import Edge
from compeft_core import Compression, layout_of, seeded_state, state_digest, state_of
from compeft_core.server_optimizer import ServerOptimizer, no_moments
from compeft_proto import envelope as dsse
from compeft_proto.chunk_refs import chunks, refs_of
from compeft_proto.clock import now_ms
from compeft_proto.convert import coding_of, layout_to_proto
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.admin import policy_admin
from compeft_server.aggregation.expert_log import Carried, compose
from compeft_server.data_directory import LEDGER_FILE, open_ledger, open_store
from compeft_server.domain.records import Expert, Version
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.ledger import schema

LAYOUT, EXPERT = layout_of({"a.lora_A": (8, 64), "a.lora_B": (64, 8)}), "long"
BOUNDS, DENSITY = [0.05, 0.0], Compression(0.05, "mean_magnitude")


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians in seconds."""

    versions: int
    ledger_bytes: int
    start_s: float
    start_cpu_s: float
    start_one_version_s: float
    start_one_version_cpu_s: float
    sync_newest_s: float
    sync_all_s: float


def fill(data: Path, versions: int) -> SigningKey:
    """A data directory with an expert up to this version; the key of a reader. Rows and chunks are written without waiting for the disk."""
    key, reader, ledger = own_key(data), new_key(), open_ledger(data)
    open_store(data)
    ledger.enrol("reader", reader.public, "reader", now_ms())
    genesis = pb.Genesis(
        expert=EXPERT,
        base_model_digest=bytes(32),
        adapter_config_digest=bytes(32),
        layout=layout_to_proto(LAYOUT),
        seeded=pb.SeededState(seed=1, bounds=BOUNDS),
        state_digest=state_digest(LAYOUT, seeded_state(LAYOUT, 1, BOUNDS)),
    )
    first = pb.VersionManifest(state_digest=genesis.state_digest, genesis=genesis)
    ledger.create(Expert(EXPERT, bytes(32), bytes(32), LAYOUT), _version(key, first, 0))
    with ledger._engine.begin() as connection:
        rows = [asdict(version) for version in _steps(data, key, versions)]
        for row in rows:
            row["residual_chunks"], row["moment_chunks"] = b"".join(row.pop("residual")), b"".join(row.pop("moments"))
        if rows:
            connection.execute(sa.insert(schema.versions), rows)
    policy_admin.rule(ledger, "allow", EXPERT, "role:reader", policy_admin.USUAL["reader"], now_ms())
    ledger.close()
    return reader


def _steps(data: Path, key: SigningKey, versions: int) -> Iterator[Version]:
    optimizer, state = ServerOptimizer(), state_of(LAYOUT, seeded_state(LAYOUT, 1, BOUNDS))
    carried = Carried(state, np.zeros(LAYOUT.size, np.float32), no_moments(optimizer, LAYOUT.size), optimizer.name)
    rng = np.random.default_rng(0)
    for number in range(1, versions + 1):
        step = compose(LAYOUT, carried, rng.normal(0, 1e-3, LAYOUT.size).astype(np.float32), optimizer, DENSITY)
        for ref, chunk in zip(refs_of(step.encoded.blob), chunks(step.encoded.blob), strict=True):
            path = data / "chunks" / ref.sha256.hex()[:2] / ref.sha256.hex()
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(chunk)
        manifest = pb.VersionManifest(
            version=number,
            parent_state_digest=carried.state.digest,
            state_digest=step.after.state.digest,
            coding=coding_of(step.encoded, DENSITY),
            chunks=refs_of(step.encoded.blob),
        )
        yield _version(key, manifest, len(step.encoded.blob))
        carried = step.after


def _version(key: SigningKey, manifest: pb.VersionManifest, payload_bytes: int) -> Version:
    manifest.expert, manifest.issued_at_ms, manifest.layout_digest = EXPERT, now_ms(), LAYOUT.digest
    manifest.base_model_digest = manifest.adapter_config_digest = bytes(32)
    envelope, number = dsse.seal(key, dsse.VERSION, manifest).SerializeToString(), manifest.version
    return Version(EXPERT, number, envelope, manifest.state_digest, (), "run", number, payload_bytes, 0.0, manifest.issued_at_ms)


@contextmanager
def serving(data: Path) -> Iterator[tuple[str, float, float]]:
    """A running `compeft serve`; its address, the seconds it took until it answered, and the processor seconds it used in them."""
    started = time.monotonic()
    command = [str(Path(sys.executable).parent / "compeft"), "serve", "--data", str(data), "--port", "0", "--format", "json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = _address(process)
        with grpc.insecure_channel(address) as channel:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        used = psutil.Process(process.pid).cpu_times()
        yield address, time.monotonic() - started, used.user + used.system
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _address(process: subprocess.Popen[str]) -> str:
    for line in process.stdout or ():
        if line.startswith('{"address"'):
            return str(json.loads(line)["address"])
    raise SystemExit("compeft serve has ended")


def start_s(data: Path, starts: int) -> tuple[float, float]:
    """Median seconds and processor seconds of several starts."""
    taken = []
    for _ in range(starts):
        with serving(data) as (_, seconds, used):
            taken.append((seconds, used))
    return statistics.median(s for s, _ in taken), statistics.median(u for _, u in taken)


def sync_s(data: Path, reader: SigningKey, folder: Path, have: int, want: int) -> float:
    """How long the first client after a start takes from one version to another; -1 is to have nothing."""
    with serving(data) as (address, _, _):
        client = EdgeClient(Edge(address, reader, own_key(data).public, folder))
        if have >= 0:
            client.sync(EXPERT, have)
    with serving(data) as (address, _, _):
        client = EdgeClient(Edge(address, reader, own_key(data).public, folder))
        started = time.monotonic()
        client.sync(EXPERT, want)
        return time.monotonic() - started


def measure(folder: Path, versions: int, starts: int) -> Figures:
    """All figures, in a folder of their own."""
    reader = fill(folder / "long", versions)
    fill(folder / "one", 1)
    one, long = start_s(folder / "one", starts), start_s(folder / "long", starts)
    return Figures(
        versions=versions,
        ledger_bytes=(folder / "long" / LEDGER_FILE).stat().st_size,
        start_s=long[0],
        start_cpu_s=long[1],
        start_one_version_s=one[0],
        start_one_version_cpu_s=one[1],
        sync_all_s=sync_s(folder / "long", reader, folder / "all", -1, versions),
        sync_newest_s=sync_s(folder / "long", reader, folder / "newest", versions - 1, versions),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=10_000, help="length of the log")
    parser.add_argument("--starts", type=int, default=3, help="starts of each; their median counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compeft-startup-") as folder:
        found = measure(Path(folder), options.versions, options.starts)
    print(f"{found.versions:,} versions, a ledger of {found.ledger_bytes / 1e6:.1f} MB")
    print(
        f"start to first answer       {found.start_s:7.2f} s, {found.start_s / found.start_one_version_s:.2f} times that of one version"
    )
    ratio = found.start_cpu_s / found.start_one_version_cpu_s
    print(f"processor seconds of that   {found.start_cpu_s:7.2f} s, {ratio:.2f} times that of one version")
    print(f"sync of the newest version  {found.sync_newest_s:7.2f} s")
    print(f"sync of the whole log       {found.sync_all_s:7.2f} s")
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
