"""Rounds under a storm: SIGKILL of the aggregator and of clients at random moments, and what must hold afterwards, whatever was hit.

Nothing acknowledged is lost, nothing counts twice, and what the updates carried plus the clients' residuals is what was trained.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from compeft_client.durable_files import write_durably
from compeft_client.exchange.edge_client import EdgeClient
from compeft_client.exchange.state_directory import StateDirectory
from compeft_core import compress, densify
from compeft_proto.convert import payload_of
from compeft_proto.errors import TransferError
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.admin.audit_check import verify_log
from compeft_server.aggregation.expert_log import ExpertLog
from compeft_server.data_directory import open_store
from compeft_server.identity.aggregator_keys import earlier_keys, own_key
from tests.faults.client import edge_of, task_vector_of
from tests.faults.site import Site
from tests.rounds.conftest import DOWNLINK, EXPERT, LAYOUT, RUN, UPLINK, genesis

T = TypeVar("T")
PATIENCE_S = 120.0
KILLS_A_ROUND = 4
"""At most; a process takes longer to start than to kill, and the round must end."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a storm did, and what was checked after it."""

    kills: Counter[str]
    rounds: int
    acknowledged: int
    merged: int
    largest_float64_deviation: float

    def __str__(self) -> str:
        return (
            f"kills: {self.kills['aggregator']} of the aggregator, {self.kills['client']} of clients; {self.rounds} rounds; "
            f"{self.acknowledged} updates acknowledged, {self.merged} merged, each once; residuals bit-exact; "
            f"accepted + residual differs from what was trained by at most {self.largest_float64_deviation:.1e} (float32 rounding)"
        )


@dataclass
class Storm:
    """Some clients and an aggregator, all of them processes; `seed` decides who is killed when."""

    folder: Path
    clients: int = 3
    seed: int = 0
    options: tuple[str, ...] = ()
    kills: Counter[str] = field(default_factory=Counter)
    took_part: dict[str, range] = field(default_factory=dict)
    """The rounds of everybody that ever was a member."""

    def __post_init__(self) -> None:
        self.site = Site(self.folder, options=self.options)
        self._random = random.Random(self.seed)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.rounds, self.names = 0, list[str]()
        for _ in range(self.clients):
            self._enrol()

    def _enrol(self) -> str:
        """One more member, from the next round on; its name."""
        name = f"edge-{len(self.took_part)}"
        path = self.folder / f"{name}.key"
        path.touch(mode=0o600)
        path.write_bytes(self.site.enrol(name).to_pem())
        self.names.append(name)
        self.took_part[name] = range(self.rounds + 1, 0)
        return name

    def __enter__(self) -> "Storm":
        self.site.start()
        self.site.conductor().publish(genesis())
        for name in self.names:
            self._start(name)
        return self

    def __exit__(self, *_: object) -> None:
        (self.folder / "over").touch()
        for process in self._processes.values():
            process.kill()
            process.wait()
        self.site.close()

    def run(self, kills: int) -> Outcome:
        """Rounds with `kills` kills in them, then one without; then check everything."""
        while self.kills.total() < kills:
            self.round(min(self.kills.total() + KILLS_A_ROUND, kills))
        self.round(0)
        return self.check()

    def round(self, upto: int) -> None:
        """One round, with kills until there have been `upto` in all."""
        self.rounds += 1
        may_kill: Callable[[], bool] = lambda: self.kills.total() < upto  # noqa: E731
        number = self.rounds
        opened = self._persist(lambda: self.site.conductor().open_round(EXPERT, RUN, number, 3600.0), may_kill)
        task = {"version": opened.base_version, "nonce": opened.round_nonce.hex()}
        write_durably(self.folder / f"round-{number}", json.dumps(task).encode())
        give_up = time.monotonic() + PATIENCE_S
        while not all((self.folder / f"receipt-{name}-{number}").exists() for name in self.names):
            self._strike(may_kill)
            assert all(process.poll() is None for process in self._processes.values()), self._output()
            assert time.monotonic() < give_up, f"round {number} does not end: {self._output()}"
        closed = self._persist(
            lambda: self.site.conductor().close_round(EXPERT, RUN, number, "average", 1.0, DOWNLINK), lambda: False
        )
        assert (closed.accepted, closed.closed) == (len(self.names), True)
        for name in self.names:
            self.took_part[name] = range(self.took_part[name].start, number + 1)

    def _strike(self, may_kill: Callable[[], bool]) -> None:
        """Wait a random moment, then kill somebody and start it again."""
        time.sleep(self._random.uniform(0.0, 0.3))
        if not may_kill():
            return
        if self._random.random() < 0.5:
            self.kills["aggregator"] += 1
            self.site.kill()
            self.site.start()
            return
        name = self._random.choice(self.names)
        assert self._processes[name].poll() is None, self._output()
        self.kills["client"] += 1
        self._processes[name].kill()
        self._processes[name].wait()
        self._start(name)

    def _persist(self, attempt: Callable[[], T], may_kill: Callable[[], bool]) -> T:
        """A command may be repeated; the aggregator may be killed while it is obeyed."""
        if may_kill() and self._random.random() < 0.3:
            self.kills["aggregator"] += 1
            self.site.kill()
            self.site.start()
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                return attempt()
            except TransferError:
                assert time.monotonic() < give_up
                time.sleep(0.1)

    def _start(self, name: str) -> None:
        first = str(self.took_part[name].start)
        with (self.folder / f"{name}.log").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.client", str(self.folder), name, self.site.address, first],
                stdout=output,
                stderr=output,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "GRPC_VERBOSITY": "ERROR"},
            )

    def _output(self) -> str:
        return "\n".join(path.read_text()[-1500:] for path in sorted(self.folder.glob("*.log")))

    # What must hold

    def check(self) -> Outcome:
        """Errors: AssertionError that says what was lost or doubled."""
        ledger, data = self.site.ledger, self.site.data
        log = ExpertLog(own_key(data).public, open_store(data), ledger, earlier_keys(data))
        verify_log(ledger)
        versions = ledger.versions(EXPERT, -1, ledger.head(EXPERT))
        assert [v.version for v in versions] == list(range(self.rounds + 1))
        merged = Counter((c.keyid, c.sequence) for v in versions for c in log.manifest(v).contributions)
        assert set(merged.values()) == {1}, "an update was merged twice"
        receipts = [self._receipt(name, n) for name, rounds in self.took_part.items() for n in rounds]
        lost = [r for r in receipts if ledger.submission(r.update_digest) is None or (r.keyid, r.sequence) not in merged]
        assert not lost, "an acknowledged update is not in the ledger, or not merged"
        assert len(receipts) == merged.total()
        deviation = max(self._conserved(name, log) for name in self.names)
        return Outcome(self.kills, self.rounds, len(receipts), merged.total(), deviation)

    def _conserved(self, name: str, log: ExpertLog) -> float:
        """Replay what a client trained: the same payloads at the aggregator, the same residual at the client, bit for bit."""
        edge = edge_of(self.folder, name, self.site.address)
        EdgeClient(edge).sync(EXPERT)
        directory = StateDirectory(edge.state / EXPERT)
        memory = directory.load()
        rounds = self.took_part[name]
        assert (memory.sequence, memory.pending) == (len(rounds), None), "a sequence number without its round"
        residual, trained, carried = np.zeros(LAYOUT.size, np.float32), np.zeros(LAYOUT.size), np.zeros(LAYOUT.size)
        expert = log.expert(EXPERT)
        for number in rounds:
            target = task_vector_of(name, number) + residual
            update = compress(LAYOUT, target, UPLINK)
            kept = log._encoded(expert, self._receipt(name, number).update_digest)
            assert kept.blob == payload_of(LAYOUT, update).blob, f"{name} round {number}: another payload than was made"
            residual = target - densify(update)
            trained += task_vector_of(name, number)
            carried += densify(update)
        assert directory.residual(memory, LAYOUT).tobytes() == residual.tobytes(), f"{name}: residual is not what is left"
        deviation = np.abs(carried + residual.astype(np.float64) - trained).max()
        assert deviation <= 2 * self.rounds * np.finfo(np.float32).eps * np.abs(trained).max()
        return float(deviation)

    def _receipt(self, name: str, number: int) -> pb.Receipt:
        return pb.Receipt.FromString((self.folder / f"receipt-{name}-{number}").read_bytes())
