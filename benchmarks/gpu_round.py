"""One federated round of the language-model example in this process, with the seconds that compression adds to training."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from compeft_client.exchange.edge_client import EdgeClient
from compeft_server.flower.conductor import Conductor
from tests.examples import language_rounds

TIMED: tuple[tuple[type, str], ...] = ((EdgeClient, "sync"), (EdgeClient, "submit"), (Conductor, "close_round"))
"""Fetching and applying; compressing, sealing and sending; merging and coding."""


def federated_round(changes: dict[str, object]) -> dict[str, float | int | str]:
    """Seconds of training and of the exchange of all four sites in one round, bytes, and peak memory of the GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    spent: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, _timed(spent):
        ran = language_rounds.run_compressed(Path(folder), trained=spent, **{"num-server-rounds": 1, **changes})
    report = ran.report
    assert report is not None
    exchange = sum(spent[name] for _, name in TIMED)
    return {
        "model": str(changes["model"]),
        "train_seconds": spent["train"],
        "exchange_seconds": exchange,
        "exchange_percent_of_training": 100 * exchange / spent["train"] if spent["train"] else 0.0,
        "payload_bytes": report.traffic.payload_bytes,
        "wire_bytes": report.traffic.wire_bytes,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        "loss_before": ran.measured["loss"][0],
        "loss_after": ran.measured["loss"][-1],
    }


@contextmanager
def _timed(spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds of the methods in TIMED while inside."""
    before = {(owner, name): getattr(owner, name) for owner, name in TIMED}
    for (owner, name), method in before.items():
        spent[name] = 0.0
        setattr(owner, name, _timing(method, name, spent))
    try:
        yield
    finally:
        for (owner, name), method in before.items():
            setattr(owner, name, method)


def _timing(method: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    def timed(*args: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*args, **named)
        finally:
            spent[name] += time.perf_counter() - started

    return timed
