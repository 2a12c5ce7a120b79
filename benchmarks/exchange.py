"""Speed and memory of the exchange: `python -m benchmarks.exchange [--megabytes 500] [--clients 256] [--folder DIR]`.

A large upload through the client's own code over loopback TLS, beside a plain gRPC stream of the same bytes in the same run; then many
clients with small experts, each accepted, signed for and durable. Prints ratios, and on the last line one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import psutil

from benchmarks.exchange_load import Sealed, dense_layout, payload_of, publish, seal, small_layout, storm
from benchmarks.exchange_peer import METHOD, OPTIONS
from compeft_proto.transport import SubmitDialogue, open_channel, upload
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from tests.faults.site import Site

MB = 2**20
ROUNDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the large upload")
    parser.add_argument("--clients", type=int, default=256, help="clients of the second part")
    parser.add_argument("--repeats", type=int, default=3, help="uploads of the first part; the best counts")
    parser.add_argument("--folder", type=Path, help="where the aggregator keeps its data; a temporary folder by default")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        figures = {
            "large": large(folder / "large", options.megabytes * MB, options.repeats),
            "many": many(folder / "many", options.clients),
        }
    print(json.dumps(figures))


def large(folder: Path, payload_bytes: int, repeats: int) -> dict[str, float]:
    """One client, one large update, against the plain stream."""
    site, layout = Site(folder, tls=True), dense_layout(payload_bytes)
    site.start()
    try:
        base = payload_of(layout, 1)
        work = [
            seal(site.enrol(f"edge-{n}"), *publish(site, layout, f"large-{n}"), payload_of(layout, n)) for n in range(repeats)
        ]
        site.stop()
        site.start()
        idle = site.resident_bytes()
        ours = min(_ours(site, sealed) for sealed in work)
        peak = site.peak_bytes()
        plain = min(_plain(site, base.base, repeats))
    finally:
        site.close()
    size = len(base.base) / MB
    print(f"upload of {size:.0f} MB over loopback TLS, best of {repeats}")
    print(f"  plain gRPC stream   {plain:6.2f} s  {size / plain:6.0f} MB/s")
    print(f"  this exchange       {ours:6.2f} s  {size / ours:6.0f} MB/s   {plain / ours:.2f}x of the plain stream")
    print(f"  aggregator's memory {idle / MB:6.0f} MB idle, {peak / MB:.0f} MB at most: {(peak - idle) / MB:.0f} MB above")
    return {"plain_s": plain, "ours_s": ours, "ratio": plain / ours, "above_idle_mb": (peak - idle) / MB}


def _ours(site: Site, sealed: Sealed) -> float:
    refs = sealed.payload.refs()
    with open_channel(site.address, site.client_tls) as channel:
        grpc.channel_ready_future(channel).result()
        started = time.monotonic()
        with SubmitDialogue(rpc.ExpertExchangeStub(channel).Submit, site.address) as dialogue:
            upload(dialogue, sealed.envelope, refs, sealed.payload.base)
        return time.monotonic() - started


def _plain(site: Site, payload: bytes, repeats: int) -> list[float]:
    files = [str(site.folder / f"{name}.pem") for name in ("cert", "key", "client-ca")]
    server = subprocess.Popen([sys.executable, "-m", "benchmarks.exchange_peer", *files], stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert site.client_tls is not None
    tls, port = site.client_tls, int(server.stdout.readline())
    seconds = []
    try:
        for _ in range(repeats):
            secret = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
            with grpc.secure_channel(f"localhost:{port}", secret, OPTIONS) as channel:
                grpc.channel_ready_future(channel).result()
                parts = (payload[at : at + 2**18] for at in range(0, len(payload), 2**18))
                started = time.monotonic()
                counted = channel.stream_unary(METHOD)(parts)
                seconds.append(time.monotonic() - started)
                assert int(counted) == len(payload)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    return seconds


def many(folder: Path, clients: int) -> dict[str, float]:
    """Many clients, one small update each, in several rounds; the first one is not timed."""
    site, layout = Site(folder), small_layout(700_000)
    site.start()
    try:
        keys = [site.enrol(f"edge-{number}") for number in range(clients)]
        rounds = [publish(site, layout, f"small-{number}") for number in range(ROUNDS + 1)]
        work = [
            [seal(key, *opened, payload_of(layout, clients * place + number)) for place, opened in enumerate(rounds)]
            for number, key in enumerate(keys)
        ]
        storm(site, [mine[:1] for mine in work])
        process = psutil.Process(site.process.pid)
        before = process.cpu_times()
        seconds = storm(site, [mine[1:] for mine in work])
        after = process.cpu_times()
        accepted = sum(len(site.ledger.submissions(f"small-{number}", "run", 1)) for number in range(1, ROUNDS + 1))
    finally:
        site.close()
    cpu_ms = 1000 * (after.user + after.system - before.user - before.system) / accepted
    size = len(work[0][0].payload.base) / 1000
    print(f"{clients} clients at once, {size:.0f} kB each, signatures checked, durable: {accepted} accepted in {seconds:.2f} s")
    print(f"  {accepted / seconds:.0f} accepted/s, {cpu_ms:.1f} ms of the aggregator's processor time each")
    return {"accepted_per_s": accepted / seconds, "server_cpu_ms": cpu_ms}


if __name__ == "__main__":
    main()
