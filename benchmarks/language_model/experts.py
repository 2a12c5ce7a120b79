"""Experts of SmolLM2 as PEFT folders in the benchmarks' cache, with what the base and they score on unseen rows.

`<cache>/smollm2/<task>-<seed>/` holds adapter_model.safetensors, adapter_config.json, the initial adapter beside them
(initial.safetensors), the unseen rows as token ids (tests.json), and metrics.json: recipe, seconds, base's and tuned's score.
"""

import json
import time
from dataclasses import asdict
from pathlib import Path

from safetensors.numpy import load_file, save_file

from benchmarks.cache import cache_folder
from benchmarks.folding import differences_of
from benchmarks.language_model.base import load_base, load_tokenizer
from benchmarks.language_model.scoring import Scorer, score
from benchmarks.language_model.tasks import TASKS, rows_of, save_rows
from benchmarks.language_model.training import Recipe, lora_model, train
from compeft_client.models.adapter import adapter_arrays

FOLDER, WEIGHTS, TESTS = "smollm2", "adapter_model.safetensors", "tests.json"


def expert_folder(task: str, seed: int) -> Path:
    """Where the expert is or will be."""
    return cache_folder() / FOLDER / f"{task}-{seed}"


def made_expert(task: str, seed: int, data: Path, recipe: Recipe) -> Path:
    """Train an expert unless its folder is complete; minutes on one core."""
    folder = expert_folder(task, seed)
    if (folder / "metrics.json").exists():
        return folder
    rows, tests = rows_of(TASKS[task], data, load_tokenizer(), seed, recipe.rows)
    model = load_base()
    base = score(model, tests)
    began = time.process_time()
    model = lora_model(model, recipe, seed)
    initial = adapter_arrays(model)
    loss = train(model, rows, recipe, seed)
    took = time.process_time() - began
    model.peft_config["default"].base_model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    model.save_pretrained(folder, save_embedding_layers=False)
    save_rows(folder / TESTS, tests)
    save_file(initial, folder / "initial.safetensors")
    tuned = Scorer(load_base()).score(tests, differences_of(load_file(folder / WEIGHTS), scale_of(folder)))
    metrics = {"task": task, "seed": seed, "recipe": asdict(recipe), "train_rows": len(rows), "test_rows": len(tests)}
    metrics |= {"last_loss": loss, "train_cpu_seconds": round(took, 1), "base": asdict(base), "tuned": asdict(tuned)}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    return folder


def scale_of(folder: Path) -> float:
    """lora_alpha / r of a PEFT folder."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return float(config["lora_alpha"] / config["r"])
