"""Private federated training of one arm by the functions of the product: clip, compress up, clip again, noise, compress down."""

from dataclasses import dataclass, replace

import numpy as np

from benchmarks.privacy.tasks import TASKS, ClientTask, accuracy, start, trained
from compeft_core import Compression, Encoded, Layout, Vector, compress, decode, densify, encoding_of
from compeft_core.privacy.clipping import Noise, clipped, noised_count, private_mean
from compeft_core.privacy.gaussian import rounded_gaussian
from compeft_core.privacy.terms import ClientPrivacy, bit_noise, next_clip, value_noise
from compeft_core.secure_sum.quantise import Quantiser, shared_support
from compeft_server.privacy.accountant import NoisyRelease, epsilon_of

DELTA = 1e-5
BARE = 1e-6
"""The noise multiplier of a run without privacy."""


@dataclass(frozen=True, slots=True)
class PrivateArm:
    """How one arm compresses. up, down: densities; residual: of the clients; support: part of the vector that is summed up at all."""

    name: str
    up: float = 0.05
    down: float = 0.1
    dense: bool = False
    residual: bool = False
    support: float = 0.0


ARMS = (
    PrivateArm("dense", dense=True),
    PrivateArm("ternary 5 / 10 %"),
    PrivateArm("ternary 10 / 40 %", up=0.1, down=0.4),
    PrivateArm("ternary 5 / 10 %, residual", residual=True),
    PrivateArm("shared support 18 / 20 %", support=0.18, down=0.2),
)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How long and how fast. epsilon: None trains without noise."""

    task: str
    arm: str
    epsilon: float | None
    seed: int
    rounds: int = 20
    clients: int = 100
    steps: int = 10
    rate: float = 0.3
    clip: float = 0.5


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Accuracy in percent after the last round, epsilon that was spent, bytes up and down of one client in all rounds."""

    accuracy: float
    spent: float
    bytes_up: int
    bytes_down: int
    clip: float


def multiplier_for(epsilon: float, rounds: int) -> float:
    """The noise multiplier of a round at which all rounds together spend `epsilon` at DELTA."""
    low, high = 0.01, 1000.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if epsilon_of([NoisyRelease(middle, times=rounds)], DELTA) <= epsilon else (middle, high)
    return high


def train(plan: TrainingPlan) -> TrainingResult:
    """Train one arm."""
    arm = next(arm for arm in ARMS if arm.name == plan.arm)
    task = TASKS[plan.task](plan.seed, plan.clients)
    multiplier = multiplier_for(plan.epsilon, plan.rounds) if plan.epsilon else BARE
    terms = ClientPrivacy(plan.clip, multiplier, DELTA, target_quantile=0.5, residual=arm.residual)
    if plan.epsilon is None:
        terms = replace(terms, target_quantile=None, clip=1e3)
    run = _Run(task, arm, terms, plan)
    for number in range(plan.rounds):
        run.round(number)
    spent = epsilon_of([NoisyRelease(multiplier, times=plan.rounds)], DELTA) if plan.epsilon else float("inf")
    return TrainingResult(accuracy(task, run.layout, run.state), spent, run.bytes_up, run.bytes_down, run.terms.clip)


class _Run:
    def __init__(self, task: ClientTask, arm: PrivateArm, terms: ClientPrivacy, plan: TrainingPlan) -> None:
        self.task, self.arm, self.terms, self.plan = task, arm, terms, plan
        self.layout: Layout = task.layout(arm.dense)
        self.state = start(task, self.layout, plan.seed)
        self.rng = np.random.default_rng(plan.seed)
        self.residuals = [np.zeros(self.layout.size, np.float32)] * plan.clients
        self.left = np.zeros(self.layout.size, np.float32)
        self.step = np.empty(0, np.uint32)
        self.bytes_up = self.bytes_down = 0

    def round(self, number: int) -> None:
        updates, within = [], 0
        chosen = self._support(number)
        for client in range(self.plan.clients):
            vector = trained(self.task, self.layout, self.state, client, self.plan.steps, self.plan.rate)
            vector = vector + self.residuals[client] if self.terms.residual else vector
            if chosen is not None:
                kept = np.where(chosen, vector, np.float32(0))
                target, inside = clipped(kept, self.terms.clip)
                within += inside
                updates.append(target)
                self.residuals[client] = np.float32(0.9) * (vector - kept) if self.terms.residual else self.residuals[client]
                continue
            target, inside = clipped(vector, self.terms.clip)
            within += inside
            encoded = self._encoded(target, self.arm.up)
            updates.append(encoded)
            self.bytes_up += len(encoded.blob) if client == 0 else 0
            if self.terms.residual:
                self.residuals[client] = target - densify(decode(encoded))
        mean = self._mean(updates, chosen)
        self._publish(mean)
        bits = bit_noise(self.terms, self.plan.clients)
        if bits:
            counted = noised_count(within, bits, self.rng.bytes(32))
            self.terms = replace(self.terms, clip=next_clip(self.terms, self.terms.clip, counted, self.plan.clients))

    def _support(self, number: int) -> np.ndarray | None:
        if not self.arm.support:
            return None
        count = int(self.arm.support * self.layout.size)
        chosen = np.zeros(self.layout.size, np.bool_)
        chosen[shared_support(self.step[: count // 2], self.layout.size, count, number.to_bytes(32, "big"))] = True
        return chosen

    def _encoded(self, vector: Vector, density: float) -> Encoded:
        return encoding_of(compress(self.layout, vector, Compression(density)))

    def _mean(self, updates: list, chosen: np.ndarray | None) -> Vector:
        noise = Noise(self.terms.clip, value_noise(self.terms, self.plan.clients), self.rng.bytes(32))
        if chosen is None:
            return private_mean(updates, [1.0] * len(updates), noise)
        quantiser = Quantiser(self.terms.clip, 12, self.plan.clients)
        words = [quantiser.words(update[chosen], self.rng.bytes(32)) for update in updates]
        self.bytes_up += (words[0].size * quantiser.bits + 7) // 8
        total = quantiser.total(sum(words[1:], words[0].copy()), len(updates))
        total = total + rounded_gaussian(noise.seed, b"values", max(noise.deviation / quantiser.step, 1e-9), total.size)
        mean = np.zeros(self.layout.size, np.float32)
        mean[chosen] = quantiser.mean(total, len(updates))
        return mean

    def _publish(self, mean: Vector) -> None:
        target = mean + self.left
        encoded = self._encoded(target, self.arm.down)
        sent = densify(decode(encoded))
        self.bytes_down += len(encoded.blob)
        self.left = target - sent
        if not self.arm.dense:
            kept = decode(encoded).ternary.positions
            self.step = kept[np.argsort(-np.abs(target[kept]), kind="stable")].astype(np.uint32)
        self.state = self.state + sent
