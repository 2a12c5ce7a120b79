"""Wire bytes in the ledger are payload bytes plus framing that docs/protocol.md states, with TLS and without, for each client and way."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compeft_client.exchange.edge_client import EdgeClient, Trained
from compeft_client.identity.edge_config import Edge
from compeft_core import Compression, layout_of
from compeft_proto.keys import new_key
from compeft_proto.round_task import RoundTask
from compeft_server.data_directory import open_ledger
from compeft_server.domain.records import Transfer
from compeft_server.rpc.wire_meter import WireMeter
from tests.faults.site import Site, until
from tests.rounds.conftest import ORIGIN, RUN, genesis

LAYOUT = layout_of({"a.lora_A": (8, 500), "head": (600, 2000)}, dense=["head"])
MB = 2**20
HANDSHAKE = {False: 1_000, True: 9_000}
"""Bytes of setting up a connection, each way at most; its first call bears them."""
PER_CALL = 6_000
"""Bytes of headers, sealed messages and acknowledgements of a call, each way at most, that move no payload."""
PER_MB = {False: 1_000, True: 3_000}
"""Bytes of framing for each MiB of payload, at most."""


def most(payload: int, tls: bool) -> int:
    return payload + HANDSHAKE[tls] + PER_CALL + PER_MB[tls] * (payload // MB + 1)


@pytest.mark.parametrize("tls", [False, True])
def test_wire_bytes_are_payload_bytes_and_the_stated_framing(tmp_path: Path, tls: bool) -> None:
    site = Site(tmp_path, tls=tls)
    site.start()
    try:
        site.conductor().publish(genesis(LAYOUT, "e"))
        edges = [
            Edge(site.address, site.enrol(f"edge-{n}"), site.key.public, tmp_path / f"state-{n}", site.client_tls) for n in (0, 1)
        ]
        for number in (1, 2):
            opened = site.conductor().open_round("e", RUN, number, 600.0)
            for seed, edge in enumerate(edges):
                with EdgeClient(edge) as client:
                    client.sync("e", opened.base_version, RUN, number)
                    task = RoundTask("e", RUN, number, opened.round_nonce, opened.base_version, Compression(0.5, "norm"))
                    values = np.random.default_rng(10 * number + seed).normal(0, 1e-3, LAYOUT.size).astype(np.float32)
                    client.submit(task, Trained(values, 10, {}, ORIGIN))
            site.conductor().close_round("e", RUN, number, "average", 1.0, Compression(0.5, "norm"))
        until(lambda: len(site.ledger.transfers("e")) >= 9)
        found = [t for t in site.ledger.transfers("e") if t.round]
    finally:
        site.close()
    assert {(t.keyid, t.round, t.direction) for t in found} == {
        (edge.key.keyid, number, way) for edge in edges for number in (1, 2) for way in ("up", "down")
    }
    for transfer in found:
        carried, back = _ways(transfer)
        assert transfer.payload_bytes <= carried <= most(transfer.payload_bytes, tls), transfer
        assert 0 < back <= most(0, tls) + PER_MB[tls] * (transfer.payload_bytes // MB), transfer
    assert sum(t.payload_bytes > 2 * MB for t in found) == 6


def test_looking_for_a_socket_leaves_the_ledger_to_this_process(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    ledger.enrol("before", new_key().public, "edge", 1)
    WireMeter().connection("ipv4:192.0.2.7:1").settle()
    assert names_seen_by_another_process(tmp_path) == ["before"]
    ledger.enrol("after", new_key().public, "edge", 2)
    assert names_seen_by_another_process(tmp_path) == ["after", "before"]
    ledger.close()


def names_seen_by_another_process(data: Path) -> list[str]:
    command = [str(Path(sys.executable).parent / "compeft"), "clients", "list", "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split()[0] for line in done.stdout.splitlines()]


def _ways(transfer: Transfer) -> tuple[int, int]:
    """Bytes in the direction of the payload, and the other way."""
    received, sent = transfer.wire_received_bytes, transfer.wire_sent_bytes
    return (received, sent) if transfer.direction == "up" else (sent, received)
