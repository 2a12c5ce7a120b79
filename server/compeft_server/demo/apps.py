"""What `compeft demo` can run: the example apps, where they lie, and what they are told."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compeft_core.errors import InputError

EXAMPLES = Path("examples")
SMOLLM2 = "smollm2"
SMOLLM2_FOLDER = Path("compeft") / "benchmarks" / "SmolLM2-135M-Instruct"
"""Below the cache folder, where `python -m benchmarks.language_model.base` puts it."""
TINY = "tiny"
"""The model that the language-model example makes on the spot."""


@dataclass(frozen=True, slots=True)
class DemoApp:
    """An example app. expert: the name it publishes. compressed, plain: its two versions, which may be one app with a switch.
    config: what it is told besides rounds and seed. has_switch: one app whose run configuration names conductor and aggregator; else
    members are site folders, found by COMPEFT_SITE.
    """

    expert: str
    compressed: Path
    plain: Path
    config: Mapping[str, object] = field(default_factory=dict)
    has_switch: bool = True

    def exchanges(self, rounds: int) -> int:
        """How often a client's arrays travel in a plain run: down and up in each round, and down for each evaluation."""
        return 2 * rounds + (1 if self.has_switch else rounds)


def sentiment() -> DemoApp:
    """The example with a classifier on an encoder. Errors: InputError if it is not installed."""
    return DemoApp("sentiment", app := found(EXAMPLES / "sentiment"), app)


def language_model(model: str) -> DemoApp:
    """The example with a causal language model: "smollm2", "tiny", or a folder. Errors: InputError if that folder is missing."""
    example = EXAMPLES / "language-model"
    config: dict[str, object] = {"model": model_path(model)}
    if model != TINY:
        config |= {"train-rows": 24, "test-rows": 12, "max-tokens": 12}
    return DemoApp("language", found(example / "compressed"), found(example / "plain"), config, has_switch=False)


def model_path(model: str) -> str:
    """The folder of a model's name. Errors: InputError if it is not there."""
    if model == TINY:
        return model
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / SMOLLM2_FOLDER if model == SMOLLM2 else Path(model).absolute()
    if not (folder / "config.json").exists():
        way = (
            "python -m benchmarks.language_model.base makes it, from a checkout" if model == SMOLLM2 else "name a model's folder"
        )
        raise InputError(f"invalid --model {model!r}: {folder} has no config.json; {way}, or take --model {TINY}")
    return str(folder)


def found(app: Path) -> Path:
    """An example app: in a checkout, or where the package's data was installed. Errors: InputError."""
    for root in (Path(__file__).resolve().parents[3], Path(sys.prefix) / "share" / "compeft"):
        if (root / app / "pyproject.toml").exists():
            return root / app
    raise InputError(f"the example app {app} is not installed: run the demo from a checkout of the repository")
