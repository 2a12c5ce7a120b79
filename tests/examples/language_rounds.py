"""Rounds of the language-model app in one process: its own client and server code, plain or around a real aggregator.

The two versions of the app have one package name, so each is imported by itself.
"""

import importlib
import json
import os
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from compeft_proto.site_layout import SITE_VARIABLE
from compeft_server.admin.simulated_sites import make_sites
from compeft_server.app.server import Settings, start
from compeft_server.data_directory import open_ledger
from compeft_server.reports.figures.build import read_report
from compeft_server.reports.figures.report import Report
from tests.rounds.loopback_grid import LoopbackGrid

APPS = Path(__file__).parents[2] / "examples" / "language-model"
CLIENTS, EXPERT = 4, "language"
Config = dict[str, Any]


@dataclass(frozen=True)
class Ran:
    """What a run left: the app's own measurements and, of a compressed one, the ledger's report."""

    measured: dict[str, list[float]]
    report: Report | None


def config_of(version: str, **changes: object) -> Config:
    """The app's run configuration with changes."""
    found = tomllib.loads((APPS / version / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    return found | changes


@contextmanager
def app_of(version: str) -> Iterator[tuple[Any, Any]]:
    """The app's client and server modules; forgotten afterwards."""
    sys.path.insert(0, str(APPS / version))
    _forget()
    try:
        yield importlib.import_module("language.client_app"), importlib.import_module("language.server_app")
    finally:
        sys.path.remove(str(APPS / version))
        _forget()


Hook = Callable[[int, Any, Any], None]
"""Called with the node (1 is the server's), the model and the tokenizer whenever the app has loaded them."""


def run_plain(folder: Path, **changes: object) -> Ran:
    """The app without compeft."""
    return Ran(_run("plain", folder, {}, None, changes), None)


def run_compressed(
    folder: Path,
    nodes: Mapping[int, Config] | None = None,
    hook: Hook | None = None,
    trained: dict[str, float] | None = None,
    **changes: object,
) -> Ran:
    """The app around an aggregator in `folder`, with simulated clients. nodes: more of a node's configuration, by its number.
    trained: gets the seconds of training, all clients and rounds, as `train`.
    """
    data, sites = folder / "data", folder / "sites"
    ledger = open_ledger(data)
    server, port = start(Settings(data), ledger)
    make_sites(data, sites, CLIENTS, f"127.0.0.1:{port}", [EXPERT])
    try:
        os.environ[SITE_VARIABLE] = str(sites)
        measured = _run("compressed", folder, nodes or {}, hook, changes, trained)
        return Ran(measured, read_report(ledger, EXPERT))
    finally:
        del os.environ[SITE_VARIABLE]
        server.stop(None).wait()
        ledger.close()


def _run(
    version: str,
    folder: Path,
    nodes: Mapping[int, Config],
    hook: Hook | None,
    changes: Mapping[str, object],
    trained: dict[str, float] | None = None,
) -> dict[str, list[float]]:
    results = folder / f"{version}.json"
    config = config_of(version, **changes) | {"results-file": str(results)}
    with app_of(version) as (client, server):
        if hook is not None:
            client.load = _hooked(client.load, hook)
        if trained is not None:
            client.fit = _clocked(client.fit, trained)
        each: list[dict[str, object]] = [
            {"partition-id": n, "num-partitions": CLIENTS} | nodes.get(n, {}) for n in range(CLIENTS)
        ]
        grid = LoopbackGrid(client.app, each, run_config=config)
        server.main(grid, Context(run_id=7, node_id=1, node_config={}, state=RecordDict(), run_config=config))
    measured: dict[str, list[float]] = json.loads(results.read_text())
    return measured


def _clocked(fit: Callable[..., float], trained: dict[str, float]) -> Callable[..., float]:
    def clocked(*args: Any) -> float:
        started = time.perf_counter()
        loss = fit(*args)
        trained["train"] = trained.get("train", 0.0) + time.perf_counter() - started
        return loss

    return clocked


def _hooked(load: Callable[[Config], tuple[Any, Any]], hook: Hook) -> Callable[[Config], tuple[Any, Any]]:
    def loaded(run: Config) -> tuple[Any, Any]:
        model, tokenizer = load(run)
        hook(int(TaskIdentity._node_id or 0), model, tokenizer)
        return model, tokenizer

    return loaded


def _forget() -> None:
    for name in [name for name in sys.modules if name == EXPERT or name.startswith(f"{EXPERT}.")]:
        del sys.modules[name]
