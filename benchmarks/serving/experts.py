"""Experts of SmolLM2 as files of products, their unpacked directories, and the tokens that PEFT generates with them."""

import hashlib
import json
from pathlib import Path

import torch
from peft import PeftModel

from benchmarks.cache import cache_folder
from benchmarks.language_model.base import base_folder, load_base
from compeft_client.packing.pack import PackSettings, save_compressed, unpack
from compeft_client.serving.served_base import served_base, statements_of

TIMES = 200.0
PROMPTS, TOKENS = 32, 12


def packed(name: str) -> Path:
    """The expert file of a trained expert of `benchmarks.language_model`, such as intent-0, at TIMES; it states its base."""
    file = cache_folder() / "serving" / f"{name}.expert"
    file.parent.mkdir(exist_ok=True)
    if not file.exists():
        said = statements_of(served_base(base_folder()))
        save_compressed(cache_folder() / "smollm2" / name, file, PackSettings(times=TIMES, statements=said))
    return file


def prompts_of(name: str, count: int = PROMPTS) -> list[list[int]]:
    """Unseen prompts of the expert's task as token ids."""
    rows = json.loads((cache_folder() / "smollm2" / name / "tests.json").read_text(encoding="utf-8"))
    return [ids[: len(ids) - answer] for ids, answer in rows[:count]]


@torch.inference_mode()
def reference_tokens(name: str, count: int = PROMPTS) -> list[list[int]]:
    """What PEFT in float32 generates greedily after each of `count` prompts, with the decoded expert; kept in the cache by the file's
    digest, prompt by prompt.
    """
    file = packed(name)
    known = file.with_name(f"{name}-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}-{TOKENS}.json")
    found: list[list[int]] = json.loads(known.read_text()) if known.exists() else []
    if len(found) < count:
        torch.set_num_threads(1)
        unpack(file, file.with_suffix(""), force=True)
        model = PeftModel.from_pretrained(load_base(), file.with_suffix(""))
        model.train(mode=False)
        for prompt in prompts_of(name, count)[len(found) :]:
            found.append(_greedy(model, prompt))
            known.write_text(json.dumps(found))
    return found[:count]


def _greedy(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    ids, cache, made = torch.tensor([prompt]), None, list[int]()
    for _ in range(TOKENS):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
        made.append(int(ids))
    return made
