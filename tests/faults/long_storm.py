"""A storm of hours: everything that may happen to an aggregator in years, at random moments, beside honest rounds.

Members come and go, keys rotate, processes are killed, the disk fills, PostgreSQL and S3 are lost and come back, and attackers try what
they can all the time. It ends with the invariants counted.
"""

import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from compeft_proto.clock import now_ms
from compeft_proto.keys import new_key
from compeft_server.data_directory import Storage, choose_storage
from tests.faults.attackers import Attackers
from tests.faults.site import until
from tests.faults.storm import Outcome, Storm
from tests.rounds.conftest import EXPERT
from tests.server import servers

STRIKES_A_ROUND = 3
SETTLE_S = 15.0
"""Seconds after which the server has ended what attackers left open."""
MOST_BYTES, MOST_DESCRIPTORS = 160 * 2**20, 48
"""What a process may have grown by between its first round and its last."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A storm's outcome, what struck, and what was added up after it."""

    outcome: Outcome
    strikes: Counter[str]
    attacks: Counter[str]
    members: int
    counted_payload: int
    acknowledged_payload: int
    grown_bytes: int
    grown_descriptors: int

    def __str__(self) -> str:
        struck = ", ".join(f"{name} {count}" for name, count in sorted(self.strikes.items()))
        tried = ", ".join(f"{name} {count}" for name, count in sorted(self.attacks.items()))
        return (
            f"{self.outcome}\nstruck: {struck}\nattacked: {tried}\n{self.members} members in all; payload bytes counted "
            f"{self.counted_payload:,} of {self.acknowledged_payload:,} acknowledged; memory grew by {self.grown_bytes / 2**20:.0f} MB, "
            f"descriptors by {self.grown_descriptors}"
        )


@dataclass
class LongStorm(Storm):
    """A storm in whose rounds one of `outside` strikes too: what may be lost and comes back, by name."""

    outside: dict[str, Callable[[], None]] = field(default_factory=dict)
    strikes: Counter[str] = field(default_factory=Counter)

    def go_on(self, hours: float) -> Counted:
        """Run rounds for `hours`, then two rounds without faults, then check everything."""
        self.round(0)
        early, give_up = self._held(), time.monotonic() + 3600 * hours
        attacker = self.site.enrol("attacker")
        with Attackers(self.site.port, attacker, self.seed) as attackers:
            while time.monotonic() < give_up:
                self._between_rounds()
                self.round(self.kills.total() + STRIKES_A_ROUND)
        until(lambda: self._held()[1] <= early[1] + MOST_DESCRIPTORS, SETTLE_S)
        self.round(0)
        late = self._held()
        return self._counted(attackers.tried, late[0] - early[0], late[1] - early[1])

    def _strike(self, may_kill: Callable[[], bool]) -> None:
        """A kill, or something outside of the processes."""
        if may_kill() and self.outside and self._random.random() < 0.4:
            name = self._random.choice(sorted(self.outside))
            self.strikes[name] += 1
            self.kills["outside"] += 1
            self.outside[name]()
            return
        super()._strike(may_kill)

    def _between_rounds(self) -> None:
        """Nobody has an update under way: members and keys may change."""
        for name, change in {
            "joined": self._join,
            "left": self._leave,
            "client key": self._new_key,
            "own key": self._rotate,
        }.items():
            if self._random.random() < 0.25 and change():
                self.strikes[name] += 1

    def _join(self) -> bool:
        if len(self.names) >= 2 * self.clients:
            return False
        self._start(self._enrol())
        return True

    def _leave(self) -> bool:
        if len(self.names) <= 2:
            return False
        name = self._random.choice(self.names)
        self._end(name)
        self.names.remove(name)
        return True

    def _new_key(self) -> bool:
        name, made = self._random.choice(self.names), new_key()
        self._end(name)
        member = next(m for m in self.site.ledger.members() if m.name == name and not m.revoked)
        self.site.ledger.membership.renew(member, made.public, None, now_ms())
        (self.folder / f"{name}.key").write_bytes(made.to_pem())
        self._start(name)
        return True

    def _rotate(self) -> bool:
        compeft = Path(self.site._command[0])
        subprocess.run([compeft, "rotate-key", "--data", self.site.data], check=True, capture_output=True)
        self.site.stop()
        self.site.start()
        return True

    def _end(self, name: str) -> None:
        self._processes[name].kill()
        self._processes.pop(name).wait()

    def _held(self) -> tuple[int, int]:
        """Memory and descriptors of the aggregator."""
        return self.site.resident_bytes(), len(os.listdir(f"/proc/{self.site.process.pid}/fd"))

    def _counted(self, tried: Counter[str], grown_bytes: int, grown_descriptors: int) -> Counted:
        """Errors: AssertionError that says which invariant does not hold."""
        outcome = self.check()
        transfers = [t for t in self.site.ledger.transfers(EXPERT) if t.direction == "up"]
        assert all(t.wire_received_bytes >= t.payload_bytes for t in transfers), "more payload than bytes on the wire"
        acknowledged = [self._receipt(name, n).payload_bytes for name, rounds in self.took_part.items() for n in rounds]
        counted, lost = sum(t.payload_bytes for t in transfers), self.kills.total() + self.strikes.total()
        assert counted <= sum(acknowledged), "an update's bytes were counted twice"
        assert counted >= sum(acknowledged) - lost * 2 * self.clients * max(acknowledged), (
            "bytes of more calls are missing than were cut"
        )
        assert grown_bytes < MOST_BYTES, f"memory grew by {grown_bytes:,} bytes"
        assert grown_descriptors <= MOST_DESCRIPTORS, f"descriptors grew by {grown_descriptors}"
        return Counted(
            outcome, self.strikes, tried, len(self.took_part), counted, sum(acknowledged), grown_bytes, grown_descriptors
        )


@contextmanager
def on_a_small_disk(folder: Path, clients: int, seed: int) -> Iterator[LongStorm]:
    """SQLite and a directory on a disk of 96 MB that fills now and then; without the right to mount, on a disk that does not."""
    data = folder / "data"
    data.mkdir(mode=0o700, parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m,mode=0700", "tmpfs", str(data)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0

    def full() -> None:
        filler = data / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(65_536))
        time.sleep(1.0)
        filler.unlink()

    try:
        limits = folder / "limits.toml"
        limits.write_text("min_free_bytes = 0\n")
        storm = LongStorm(folder, clients, seed, ("--limits", str(limits)), outside={"disk full": full} if mounted else {})
        with storm:
            yield storm
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(data)], check=False)


@contextmanager
def on_servers(folder: Path, clients: int, seed: int) -> Iterator[LongStorm]:
    """PostgreSQL and S3, each of which is lost and comes back."""
    with ExitStack() as stack:
        database = servers.PostgreSQL(folder / "postgresql")
        stack.callback(database.stop)
        bucket = servers.SeaweedFS(folder / "s3")
        stack.callback(bucket.stop)
        url, address = database.start(), bucket.start()
        servers.make_bucket(address, "storm")
        os.environ.update(servers.s3_environment(address))
        choose_storage(folder / "data", Storage(url.render_as_string(hide_password=False), "s3://storm/chunks"))

        def lost(server: servers.PostgreSQL | servers.SeaweedFS) -> Callable[[], None]:
            def strike() -> None:
                server.stop()
                time.sleep(1.0)
                server.start()

            return strike

        storm = LongStorm(folder, clients, seed, outside={"PostgreSQL lost": lost(database), "S3 lost": lost(bucket)})
        yield stack.enter_context(storm)


def run(folder: Path, hours: float, clients: int = 3, seed: int = 0) -> list[Counted]:
    """Half of the time on a disk of its own, half on servers."""
    found = []
    for name, place in {"disk": on_a_small_disk, "servers": on_servers}.items():
        shutil.rmtree(folder / name, ignore_errors=True)
        with place(folder / name, clients, seed) as storm:
            found.append(storm.go_on(hours / 2))
    return found
