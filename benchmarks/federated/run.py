"""One run: a task, an arm, a seed, some rounds; accuracy and bytes after each round."""

import resource
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch

from benchmarks.federated.arms import ARMS
from benchmarks.federated.model import Expert
from benchmarks.federated.tasks import Task
from compeft_client.models.fine_tune import TuningSettings, evaluate, features, fine_tune, fit_probe, score
from compeft_core.seeded_state import seeded_state

RANK = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """Accuracy after each round (fraction of the test rows), bytes of all clients together up to then; seconds of training and
    measuring, and of everything else; peak memory of the process.
    """

    task: str
    arm: str
    seed: int
    clients: int
    parameters: int
    accuracy: list[float]
    sent_up: list[int]
    sent_down: list[int]
    train_seconds: float
    link_seconds: float
    peak_memory_bytes: int


def run(task: Task, arm_name: str, seed: int, rounds: int) -> Outcome:
    """Run it. Deterministic but for the times."""
    expert = Expert(task.classes, RANK)
    start = seeded_state(expert.layout, seed, expert.bounds)
    began = time.perf_counter()
    arm = ARMS[arm_name](expert, start, seed, len(task.clients))
    accuracy, up, down, training = [], [], [], 0.0
    for number in range(1, rounds + 1):
        for client, rows in enumerate(task.clients):
            base = arm.fetch(client)
            before = time.perf_counter()
            expert.load(base)
            expert.train_only(arm.factors(number))
            fine_tune(expert.classifier, rows, TuningSettings(seed=1_000_000 * seed + 1000 * number + client))
            training += time.perf_counter() - before
            arm.send(number, client, expert.vector() - base, len(rows))
        state = arm.close(number)
        before = time.perf_counter()
        expert.load(state)
        accuracy.append(evaluate(expert.classifier, task.test).accuracy)
        training += time.perf_counter() - before
        up.append(arm.sent_up)
        down.append(arm.sent_down)
    link = time.perf_counter() - began - training
    arm.finish()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Outcome(task.name, arm_name, seed, len(task.clients), expert.layout.size, accuracy, up, down, training, link, peak)


def base_accuracy(task: Task) -> float:
    """The frozen base with a probe that each client fits on its own rows, zero bytes: mean accuracy on the pooled test rows."""
    expert = Expert(task.classes, RANK)  # B is zero: the adapter does nothing yet
    with torch.no_grad():
        for name, parameter in expert.classifier.encoder.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    test = features(expert.classifier, task.test)
    probes = [fit_probe(features(expert.classifier, rows), rows.labels, task.classes) for rows in task.clients]
    return float(np.mean([score(probe, test, task.test.labels).accuracy for probe in probes]))


def as_row(outcome: Outcome) -> dict[str, object]:
    """For one line of JSON."""
    return asdict(outcome)
