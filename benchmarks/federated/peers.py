"""The peers: federated averaging as others do it, in one process, with the bytes their formats take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.federated.formats import Format
from compeft_core import Layout, Vector

BOTH = "AB"


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """A peer's formats up (of the task vector) and down (of the state; `from_start`: of the state minus the first one), which LoRA
    factors it trains in a round, to how many ranks a module it cuts what it sends (None: all), and the server's learning rate.
    """

    up: Format
    down: Format
    from_start: bool = False
    factors: Callable[[int], str] = lambda _: BOTH
    ranks: int | None = None
    rate: float = 1.0


class Peer:
    """One run of a peer. All clients hold the same state, so it is kept once; bytes are counted for each."""

    def __init__(self, settings: PeerSettings, layout: Layout, start: Vector, clients: int) -> None:
        self._settings, self._layout, self._start, self._clients = settings, layout, start, clients
        self._server, self._held = start.copy(), start.copy()
        self._arrived: list[tuple[Vector, int]] = []
        self.sent_up = self.sent_down = 0

    def factors(self, number: int) -> str:
        """What trains in this round."""
        return self._settings.factors(number)

    def fetch(self, _client: int) -> Vector:
        """The state that this client trains from."""
        return self._held.copy()

    def send(self, number: int, _client: int, task_vector: Vector, examples: int) -> None:
        """One client's update."""
        active = self._active(number)
        if self._settings.ranks is not None:
            active &= self._chosen_ranks(task_vector, self._settings.ranks)
        received = np.zeros_like(task_vector)
        received[active], octets = self._settings.up(task_vector[active])
        self._arrived.append((received, examples))
        self.sent_up += octets

    def close(self, number: int) -> Vector:
        """Average, weighted by examples, and send the state to everybody; what the server now has."""
        total = sum(examples for _, examples in self._arrived)
        step = sum(vector.astype(np.float64) * (examples / total) for vector, examples in self._arrived)
        self._server += np.asarray(self._settings.rate * step, np.float32)
        changed = self._active(number) & (step != 0) if self._settings.ranks is not None else self._active(number)
        origin = self._start if self._settings.from_start else np.zeros_like(self._start)
        received, octets = self._settings.down((self._server - origin)[changed])
        self._held[changed] = received + origin[changed]
        self.sent_down += octets * self._clients
        self._arrived = []
        return self._server

    def finish(self) -> None:
        """Nothing to put away."""

    def _active(self, number: int) -> np.ndarray:
        factors = self.factors(number)
        active = np.ones(self._layout.size, bool)
        for name, part in _parts(self._layout):
            active[part] = "lora_" not in name or any(f"lora_{factor}" in name for factor in factors)
        return active

    def _chosen_ranks(self, task_vector: Vector, ranks: int) -> np.ndarray:
        """LoRA-A2: the ranks, over all modules, whose change of B A is largest: |dB[:, i]| |A[i]| or |B[:, i]| |dA[i]|."""
        chosen = np.ones(self._layout.size, bool)
        pairs = list(_modules(self._layout))
        scores = [self._importance(task_vector, a, b, shapes) for a, b, shapes in pairs]
        threshold = np.sort(np.concatenate(scores))[-ranks * len(pairs)]
        for (a, b, (shape_a, shape_b)), score in zip(pairs, scores, strict=True):
            chosen[a] = np.broadcast_to((score >= threshold)[:, None], shape_a).reshape(-1)
            chosen[b] = np.broadcast_to((score >= threshold)[None, :], shape_b).reshape(-1)
        return chosen

    def _importance(self, task_vector: Vector, a: slice, b: slice, shapes: tuple[Sequence[int], Sequence[int]]) -> Vector:
        shape_a, shape_b = shapes
        d_a, d_b = task_vector[a].reshape(shape_a), task_vector[b].reshape(shape_b)
        now_a, now_b = self._held[a].reshape(shape_a), self._held[b].reshape(shape_b)
        norm = np.linalg.norm
        return norm(d_b, axis=0) * norm(now_a, axis=1) + norm(now_b, axis=0) * norm(d_a, axis=1)


def _parts(layout: Layout) -> list[tuple[str, slice]]:
    parts, at = [], 0
    for tensor in layout.tensors:
        size = int(np.prod(tensor.shape))
        parts.append((tensor.name, slice(at, at + size)))
        at += size
    return parts


def _modules(layout: Layout) -> list[tuple[slice, slice, tuple[Sequence[int], Sequence[int]]]]:
    parts = dict(_parts(layout))
    shapes = {tensor.name: tensor.shape for tensor in layout.tensors}
    pairs = [(name, name.replace("lora_A", "lora_B")) for name in parts if "lora_A" in name]
    return [(parts[a], parts[b], (shapes[a], shapes[b])) for a, b in pairs]
