"""The part with a real vLLM: tokens against PEFT's, a promotion, what is refused, the calls of `watch --load`, metrics."""

import json
import re
import tempfile
import time
import urllib.error
from pathlib import Path

from benchmarks.language_model.base import base_folder
from benchmarks.serving.aggregator import aggregator
from benchmarks.serving.engine import Engine, vllm
from benchmarks.serving.environment import engine_environment
from benchmarks.serving.experts import TOKENS, packed, prompts_of, reference_tokens

NAME = "intent"
EXPERTS = ("intent-0", "intent-1")


def vllm_part(prompts: int) -> dict[str, object]:
    """Figures of one run (minutes)."""

    def references() -> None:
        reference_tokens(EXPERTS[0], prompts)
        reference_tokens(EXPERTS[1], prompts // 4)

    with tempfile.TemporaryDirectory() as place, aggregator(Path(place)) as served:
        for expert in EXPERTS:
            served.push(NAME, packed(expert))
        served.promote(NAME, 0)
        log = Path(place) / "vllm.log"
        environment = {"VLLM_PLUGINS": "compeft", "COMPEFT_SITE": str(served.site("engine")), "COMPEFT_FRESH_S": "0"}
        began = time.monotonic()
        with vllm(engine_environment(), base_folder(), log, environment, references) as engine:
            found: dict[str, object] = {"engine_start_s": round(time.monotonic() - began, 1)}
            first = time.perf_counter()
            equal, ties, model = _compared(engine, f"{NAME}@stable", EXPERTS[0], prompts)
            found |= {"prompts": prompts, "tokens_each": TOKENS, "equal": equal, "near_ties": ties, "answered_by": model}
            found["first_answers_s"] = round(time.perf_counter() - first, 1)
            served.promote(NAME, 1)
            asked = time.perf_counter()
            answer = engine.complete(f"{NAME}@stable", prompts_of(EXPERTS[1])[0], 1)
            found |= {"after_promotion_s": round(time.perf_counter() - asked, 3), "then_answered_by": answer["model"]}
            equal, ties, _ = _compared(engine, f"{NAME}@stable", EXPERTS[1], prompts // 4)
            found |= {"equal_after_promotion": equal, "near_ties_after": ties}
            found["refused"] = _refusal(engine, "nothing@stable")
            found["metrics"] = dict(re.findall(r"(?m)^(compeft_serving_\w+)(?:_total)? ([\d.e+-]+)$", engine.get("/metrics")))
    return found


def _compared(engine: Engine, model: str, expert: str, count: int) -> tuple[int, int, str]:
    """Prompts whose tokens equal PEFT's; those whose first difference is between logits within 1e-2; the model that answered."""
    equal, ties, said = 0, 0, ""
    for prompt, wanted in zip(prompts_of(expert, count), reference_tokens(expert, count), strict=True):
        answer = engine.complete(model, prompt, TOKENS)
        said = str(answer["model"])
        logs = answer["choices"][0]["logprobs"]  # type: ignore[index]
        got = [int(token.removeprefix("token_id:")) for token in logs["tokens"]]
        if got == wanted:
            equal += 1
            continue
        at = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b)
        two = logs["top_logprobs"][at]
        other = two.get(f"token_id:{wanted[at]}")
        ties += other is not None and max(two.values()) - other < 1e-2
    return equal, ties, said


def _refusal(engine: Engine, model: str) -> str:
    try:
        engine.complete(model, [1], 1)
    except urllib.error.HTTPError as error:
        return f"{error.code}: {json.loads(error.read())['error']['message']}"
    raise AssertionError(f"{model} was answered")
