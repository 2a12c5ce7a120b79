"""Makes the experts that the cache lacks; those whose data is not there are left out, and said so."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks.language_model.base import base_folder
from benchmarks.language_model.experts import made_expert as made_language_expert
from benchmarks.language_model.training import Recipe as LanguageRecipe
from benchmarks.product.encoder_experts import RECIPES, Recipe, made_expert
from benchmarks.scale_rule import model_folder
from compeft_client.checkpoints.base_model_digest import weights_digest
from compeft_client.models.measure_base import measure_base
from compeft_client.packing.base_statistics import BaseStatistics, cache_path, read_statistics, write_statistics

LANGUAGE_TASKS = ("intent", "language")
SEEDS, LANGUAGE_SEEDS = (0, 1), (0, 1, 2)
QUICK = Recipe("quick", "sentiment", 64, 2, test_rows=64)


def make_experts(kinds: Sequence[str], data: Path) -> None:
    """Train what is missing: about a minute an expert of the encoder, five of the language model."""
    if "minilm" in kinds:
        for seed, recipe in product(SEEDS, RECIPES):
            _made_or_said(recipe.name, partial(made_expert, recipe, seed, data))
    if "smollm2" in kinds:
        for seed, task in product(LANGUAGE_SEEDS, LANGUAGE_TASKS):
            _made_or_said(task, partial(made_language_expert, task, seed, data, LanguageRecipe()))


def quick_expert(root: Path) -> Path:
    """A small expert on committed rows, below `root`: seconds to train."""
    return made_expert(QUICK, 0, Path(), root)


def statistics_of(kind: str) -> BaseStatistics:
    """What `compeft base-stats` measures of a kind's base model, from its cache, or measured (a minute) and kept there."""
    folder = {"smollm2": base_folder, "minilm": model_folder}[kind]()
    path = cache_path(weights_digest(folder))
    if not path.exists():
        write_statistics(path, measure_base(folder, name=kind))
    return read_statistics(path)


def _made_or_said(name: str, make: Callable[[], Path]) -> None:
    try:
        make()
    except FileNotFoundError as error:  # its data
        print(f"skipped {name}: no {error.filename}")
