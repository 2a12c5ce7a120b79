"""The arms by name. Every arm has the same model, rows, seeds, rounds and learning rates."""

from collections.abc import Callable
from typing import Protocol

from benchmarks.federated.exchange import Exchange, Links
from benchmarks.federated.formats import bf16, blockwise8, fp32, nf4, top_k
from benchmarks.federated.model import HEAD
from benchmarks.federated.peers import Peer, PeerSettings
from compeft_core import Compression, Layout, ScaleRule, Vector

DENSE = "dense fp32"
HEAD_UNIT = 4.0
"""A head trains at 20 times the adapter's rate, so that it would fill the top k by itself: it is counted in units of 4, which leaves
it about a quarter of its entries and the adapter the rest. Chosen among 1, 4 and 20 on one seed of hwu64.
"""
SMALL_HEAD = 0.01
"""A head below this part of all parameters goes as bfloat16, as in the sentiment example."""


class Arm(Protocol):
    """One way to run rounds. Bytes are totals over all clients since the start."""

    sent_up: int
    sent_down: int

    def factors(self, number: int) -> str:
        """LoRA factors that train in a round."""

    def fetch(self, client: int) -> Vector:
        """The state that a client trains from, float32 of shape (layout.size,)."""

    def send(self, number: int, client: int, task_vector: Vector, examples: int) -> None:
        """One client's update."""

    def close(self, number: int) -> Vector:
        """Merge and send the result to all clients; the state that will be measured."""

    def finish(self) -> None:
        """Put everything away."""


class Trainable(Protocol):
    """What an arm reads of a model: the layout of its vector, and the bound of each tensor's initial draw."""

    layout: Layout
    bounds: list[float]


Make = Callable[[Trainable, Vector, int, int], Arm]


def peer(settings: PeerSettings) -> Make:
    """An arm of a peer."""
    return lambda expert, start, seed, clients: Peer(settings, expert.layout, start, clients)


def ours(
    up: float, down: float, rule: ScaleRule = "norm", savings: float | None = None, rate: float = 1.0, centre: bool = False
) -> Make:
    """Our system at these densities, one scale a tensor; a head that is not small is ternary too. With `savings` the densities are
    the most that it takes, and lower where its payloads would otherwise be more than fp32's divided by that. centre: the head travels
    less its median row over classes.
    """

    def make(expert: Trainable, start: Vector, seed: int, clients: int) -> Arm:
        head = sum(t.size for t in expert.layout.tensors if t.name in HEAD)
        dense, units = (
            ((HEAD if head else ()), {}) if head < SMALL_HEAD * expert.layout.size else ((), dict.fromkeys(HEAD, HEAD_UNIT))
        )
        budget = None if savings is None else int(2 * 4 * expert.layout.size / savings)
        links = Links(
            Compression(up, rule, 1.0, "tensor"),
            Compression(down, rule, 1.0, "tensor"),
            dense,
            units,
            budget,
            rate,
            HEAD if centre else (),
        )
        return Exchange(links, expert.layout, seed, expert.bounds, clients)

    return make


def only_b(_number: int) -> str:
    """FFA-LoRA: A stays as it was drawn."""
    return "B"


def alternating(number: int) -> str:
    """LoRA-A2: B in odd rounds, A in even ones."""
    return "B" if number % 2 else "A"


ARMS: dict[str, Make] = {
    DENSE: peer(PeerSettings(fp32, fp32)),
    "dense bf16": peer(PeerSettings(bf16, bf16)),
    "8-bit": peer(PeerSettings(blockwise8, blockwise8)),
    "nf4": peer(PeerSettings(nf4, nf4)),
    "FLASC top-k 5 % / 20 %": peer(PeerSettings(top_k(0.05), top_k(0.2), from_start=True)),
    "STC 5 %": ours(0.05, 0.05, rule="mean_magnitude"),
    "FFA-LoRA": peer(PeerSettings(fp32, fp32, factors=only_b)),
    "LoRA-A2 r1": peer(PeerSettings(fp32, fp32, factors=alternating, ranks=1)),
    "ours 1 % / 5 %": ours(0.01, 0.05),
    "ours 5 % / 5 %": ours(0.05, 0.05),
    "ours 5 % / 20 %": ours(0.05, 0.2),
    "ours 10 % / 10 %": ours(0.1, 0.1),
    "ours 10 % / 25 %": ours(0.1, 0.25),
    "ours 20 % / 20 %": ours(0.2, 0.2),
    "ours 20 % / 50 %": ours(0.2, 0.5),
    "ours auto, fp32 / 100": ours(1.0, 1.0, savings=100),
    "dense fp32, rate 2": peer(PeerSettings(fp32, fp32, rate=2.0)),
    "STC 5 %, rate 2": ours(0.05, 0.05, rule="mean_magnitude", rate=2.0),
    "ours 5 % / 5 %, rate 2": ours(0.05, 0.05, rate=2.0),
    "ours 10 % / 10 %, rate 2": ours(0.1, 0.1, rate=2.0),
    "ours 20 % / 20 %, rate 2": ours(0.2, 0.2, rate=2.0),
    "ours 5 % / 5 %, bounded": ours(0.05, 0.05, rule="bounded_norm"),
    "ours 5 % / 5 %, bounded, rate 2": ours(0.05, 0.05, rule="bounded_norm", rate=2.0),
    "ours 10 % / 10 %, bounded": ours(0.1, 0.1, rule="bounded_norm"),
    "ours 10 % / 10 %, bounded, rate 2": ours(0.1, 0.1, rule="bounded_norm", rate=2.0),
    "ours 10 % / 10 %, mean, rate 2": ours(0.1, 0.1, rule="mean_magnitude", rate=2.0),
    "ours 5 % / 5 %, centred, rate 2": ours(0.05, 0.05, rule="bounded_norm", rate=2.0, centre=True),
    "ours 10 % / 10 %, centred, rate 2": ours(0.1, 0.1, rule="bounded_norm", rate=2.0, centre=True),
    "ours 2.5 % / 2.5 %, centred, rate 2": ours(0.025, 0.025, rule="bounded_norm", rate=2.0, centre=True),
}
