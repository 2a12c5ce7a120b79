"""One edge client as a process that may be killed at any moment: `python -m tests.faults.client FOLDER NAME ADDRESS [FIRST]`.

It takes the rounds that the storm announces as files in FOLDER, in order from number FIRST on, sends what it has "trained" for each, and
notes each receipt in a file of its own, durably, before it goes on. Started again, it resumes.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from compeft_client.durable_files import write_durably
from compeft_client.exchange.edge_client import EdgeClient, Trained
from compeft_client.exchange.state_directory import StateDirectory
from compeft_client.identity.edge_config import Edge
from compeft_core import Vector
from compeft_proto.errors import TransferError
from compeft_proto.keys import public_keys_from_pem, signing_key_from_pem
from compeft_proto.round_task import RoundTask
from compeft_proto.v1 import expert_pb2 as pb
from tests.rounds.conftest import EXPERT, LAYOUT, ORIGIN, RUN, UPLINK


def task_vector_of(name: str, number: int) -> Vector:
    """What this client trains in this round."""
    seed = int.from_bytes(f"{name}/{number}".encode(), "little")
    return np.random.default_rng(seed).normal(0, 1e-3, LAYOUT.size).astype(np.float32)


def edge_of(folder: Path, name: str, address: str) -> Edge:
    """The client by its files."""
    key, aggregator = folder / f"{name}.key", folder / "data" / "aggregator.pub"
    newest, *older = public_keys_from_pem(aggregator.read_bytes(), "aggregator")
    return Edge(
        address,
        signing_key_from_pem(key.read_bytes(), name, 0o600),
        newest,
        folder / f"state-{name}",
        patience_s=120.0,
        older=tuple(older),
    )


def take_part(client: EdgeClient, name: str, number: int, first: int, announced: Path) -> pb.Receipt:
    """Send this round's update, or go on with it."""
    task = json.loads(announced.read_text())
    pending = StateDirectory(client._edge.state / EXPERT).load().pending
    if pending is not None and pending.sequence == number - first + 1:
        resumed = client.resume(EXPERT)
        assert resumed is not None
        return resumed
    client.sync(EXPERT, task["version"], RUN, number)
    order = RoundTask(EXPERT, RUN, number, bytes.fromhex(task["nonce"]), task["version"], UPLINK)
    return client.submit(order, Trained(task_vector_of(name, number), 100, {}, ORIGIN))


def main() -> None:
    folder, name, address = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    number = first = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    with EdgeClient(edge_of(folder, name, address)) as client:
        while not (folder / "over").exists():
            receipt, announced = folder / f"receipt-{name}-{number}", folder / f"round-{number}"
            if receipt.exists():
                number += 1
            elif announced.exists():
                try:
                    got = take_part(client, name, number, first, announced)
                except TransferError:
                    continue
                write_durably(receipt, got.SerializeToString())
            else:
                time.sleep(0.01)


if __name__ == "__main__":
    main()
