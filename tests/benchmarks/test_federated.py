"""The benchmark of federated fine-tuning, without its model: what its figures rest on."""

import numpy as np
import pytest

from benchmarks.federated.exchange import Exchange, Links
from benchmarks.federated.report import table
from compeft_core import Compression, layout_of

LAYOUT = layout_of({"a": (64, 300), "head": (300,)})
BOUNDS, CLIENTS = [0.1, 0.0], 2
HALF = Compression(0.5, "norm", 1.0, "tensor")


def rounds(links: Links, number: int) -> tuple[list[int], list[int], float]:
    """Bytes up and down after each round, and how far what the clients have is from the mean of what they trained, relatively."""
    random = np.random.default_rng(0)
    arm = Exchange(links, LAYOUT, 0, BOUNDS, CLIENTS)
    start, total, up, down = arm.fetch(0), np.zeros(LAYOUT.size), [arm.sent_up], [arm.sent_down]
    for at in range(1, number + 1):
        for client in range(CLIENTS):
            task_vector = random.standard_normal(LAYOUT.size).astype(np.float32)
            arm.send(at, client, task_vector, 1)
            total += task_vector / CLIENTS
        reached = arm.close(at)
        up.append(arm.sent_up)
        down.append(arm.sent_down)
    arm.finish()
    return np.diff(up).tolist(), np.diff(down).tolist(), float(np.linalg.norm(reached - start - total) / np.linalg.norm(total))


def test_clients_follow_the_mean_of_what_they_trained_and_every_round_costs_bytes() -> None:
    up, down, off = rounds(Links(Compression(1.0), Compression(1.0)), 3)
    assert off < 1
    assert min(up + down) > CLIENTS * LAYOUT.size / 8


def test_a_unit_changes_what_is_kept_and_not_what_the_rows_mean() -> None:
    plain, counted = (rounds(Links(HALF, HALF, units=units), 2)[2] for units in ({}, {"head": 4.0}))
    assert counted == pytest.approx(plain, rel=0.1)


def test_a_budget_holds_in_both_directions_together() -> None:
    budget, told = 3000, 2000  # a client's payloads in a round; signed manifests, receipts and framing beside them
    up, down, _ = rounds(Links(Compression(1.0), Compression(1.0), budget_bytes=budget), 2)
    free = rounds(Links(Compression(1.0), Compression(1.0)), 2)
    for number in range(2):
        assert up[number] + down[number] < CLIENTS * (budget + 2 * told) < free[0][number] + free[1][number]


def outcome(arm: str, accuracy: list[float], octets: int, **more: float) -> dict[str, object]:
    sent = [octets * (at + 1) for at in range(len(accuracy))]
    return {"task": "t", "arm": arm, "seed": 0, "accuracy": accuracy, "sent_up": sent, "sent_down": sent, **more}


def test_the_table_has_bytes_to_within_half_a_point_of_dense_and_the_share_of_the_link() -> None:
    runs = [
        outcome("base", [0.2], 0),
        outcome("dense fp32", [0.5, 0.7], 500_000, train_seconds=10.0, link_seconds=0.5),
        outcome("dense bf16", [0.5, 0.7], 250_000, train_seconds=10.0, link_seconds=0.5),
        outcome("near", [0.696, 0.697], 5_000, train_seconds=10.0, link_seconds=2.0),
        outcome("far", [0.5, 0.69], 1_000, train_seconds=10.0, link_seconds=3.0),
    ]
    rows = {line[:26].strip(): line[26:].split() for line in table(runs).splitlines()[3:]}
    assert rows["base"][-2:] == ["-", "0.00000%"]
    assert rows["near"] == ["1", "69.7", "0.02", "MB", "0.01", "MB", "200.0x", "100.0x", "20", "%", "0.00001%"]
    assert rows["far"] == ["1", "69.0", "0.00", "MB", "1", "of", "1", "no", "-", "-", "30", "%", "0.00000%"]
