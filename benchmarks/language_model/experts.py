"""Experts of SmolLM2 as PEFT folders in the benchmarks' cache, with what the base and they score on unseen rows.

`<cache>/smollm2/<task>-<seed>/` holds adapter_model.safetensors, adapter_config.json, the initial adapter beside
(`initial.safetensors`), and metrics.json: recipe, seconds, and base's and tuned's score on TEST_ROWS unseen rows.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.numpy import load_file, save_file

from benchmarks.cache import cache_folder
from benchmarks.language_model.base import load_base, load_tokenizer
from benchmarks.language_model.scoring import Differences, LowRank, Scorer
from benchmarks.language_model.tasks import TASKS, Row, rows_of
from benchmarks.language_model.training import Recipe, lora_model, train
from compeft_client.adapter import adapter_arrays

FOLDER = "smollm2"
PREFIX = "base_model.model."


def expert_folder(task: str, seed: int) -> Path:
    """Where the expert is or will be."""
    return cache_folder() / FOLDER / f"{task}-{seed}"


def made_expert(task: str, seed: int, data: Path, recipe: Recipe) -> Path:
    """Train an expert unless its folder is complete; minutes on one core."""
    folder = expert_folder(task, seed)
    if (folder / "metrics.json").exists():
        return folder
    rows, tests = rows_of(TASKS[task], data, load_tokenizer(), seed, recipe.rows)
    scorer = Scorer(load_base(torch.float32))
    base = scorer.score(tests)
    began = time.process_time()
    model = lora_model(scorer.model, recipe, seed)
    initial = adapter_arrays(model)
    loss = train(model, rows, recipe, seed)
    took = time.process_time() - began
    model.peft_config["default"].base_model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    model.save_pretrained(folder, save_embedding_layers=False)
    save_file(initial, folder / "initial.safetensors")
    tuned = scored(folder, tests)
    metrics = {"task": task, "seed": seed, "recipe": asdict(recipe), "train_rows": len(rows), "test_rows": len(tests)}
    metrics |= {"last_loss": loss, "train_cpu_seconds": round(took, 1), "base": asdict(base), "tuned": asdict(tuned)}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    return folder


def scored(folder: Path, tests: list[Row]) -> object:
    """The saved expert's score, as anybody who loads the folder gets it."""
    scorer = Scorer(load_base(torch.float32))
    scorer.load(differences_of(load_file(folder / "adapter_model.safetensors"), scale_of(folder)))
    return scorer.score(tests)


def scale_of(folder: Path) -> float:
    """lora_alpha / r of a PEFT folder."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return float(config["lora_alpha"] / config["r"])


def differences_of(state: Mapping[str, object], scale: float) -> Differences:
    """A PEFT state dict (numpy) -> low-rank pairs by the base's module names."""
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in state})
    return {
        module.removeprefix(PREFIX): LowRank(state[f"{module}.lora_B.weight"], state[f"{module}.lora_A.weight"], scale)
        for module in modules
    }
