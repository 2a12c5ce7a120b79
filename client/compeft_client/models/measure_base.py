"""How much a base model's output minds an error in each module: one pass of the base, forward and backward, over a generic text.

For a causal language model the loss is that of tokens drawn from the model's own distribution (so the mean square of its gradient is the
model's Fisher information; Martens, 2014), for an encoder the mean-pooled output times standard normal noise. No expert, task or data of
the caller is involved. The text is `generic_text.txt` beside this file, written for this project and under its licence.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compeft_client.checkpoints.base_model_digest import header_of, weights_digest
from compeft_client.packing.base_statistics import BaseStatistics, ModuleStatistics
from compeft_core.errors import InputError, LimitError

TEXT = Path(__file__).with_name("generic_text.txt")
MOST_TOKENS = 96
"""Of a passage."""
SPARE = 1.25
"""Memory for the pass, as a multiple of the weights."""
DIGITS = 4
"""Significant digits of a gradient: what two machines agree on."""
Progress = Callable[[int], None]


def passages() -> list[str]:
    """The text's passages, without its comment."""
    parts = TEXT.read_text(encoding="utf-8").split("\n\n")
    return [part.strip("\n") for part in parts if not part.startswith("#")]


def measure_base(folder: Path, *, name: str = "", memory: int = 0, progress: Progress = lambda done: None) -> BaseStatistics:
    """The statistics of the base model in a folder as transformers saves one; `progress` is told of each passage done.

    memory: bytes that the model may take, half of the machine's unless given; float32 where it fits, else the stored type.
    Errors: InputError if the folder holds no causal language model and no encoder; LimitError if the model is too large.
    """
    digest = weights_digest(folder)
    model, tokenizer, causal = _loaded(folder, memory or _half_of_memory())
    generator = torch.Generator().manual_seed(0)
    texts = passages()
    with _recorded(model) as read:
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=MOST_TOKENS)["input_ids"]
            output = model(input_ids=torch.tensor([ids]), **({"use_cache": False} if causal else {}))
            loss = _sampled_loss(output.logits[0], generator) if causal else _noise_loss(output.last_hidden_state[0], generator)
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation for it
            progress(1)
        found = read()
    text_digest = hashlib.sha256("\n\n".join(texts).encode()).digest()
    return BaseStatistics(name or str(folder), digest, text_digest, found)


def _sampled_loss(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Cross entropy, summed, of labels drawn from the logits (tokens, vocabulary) themselves."""
    logits = logits.float()
    drawn = torch.multinomial(torch.softmax(logits.detach(), -1), 1, generator=generator)[:, 0]
    return nn.functional.cross_entropy(logits, drawn, reduction="sum")


def _noise_loss(hidden: Tensor, generator: torch.Generator) -> Tensor:
    """The mean of hidden states (tokens, width) times normal noise, summed."""
    pooled = hidden.float().mean(0)
    return (pooled * torch.randn(pooled.shape, generator=generator)).sum()


def _loaded(folder: Path, memory: int) -> tuple[nn.Module, Any, bool]:
    """The frozen model, its tokenizer, and whether it is a causal language model."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers ships no annotation for it
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        causal = any(name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in config.architectures or ())
        if getattr(config, "is_encoder_decoder", False):
            raise InputError(
                f"{folder} is an encoder with a decoder: base statistics are of causal language models and of encoders"
            )
        dtype = _type_within(folder, memory)
        kind = AutoModelForCausalLM if causal else AutoModel
        model = kind.from_pretrained(folder, dtype=dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot load the base model in {folder}: {reason[:200]}") from error
    model.requires_grad_(False)
    return model.eval(), tokenizer, causal


def _type_within(folder: Path, memory: int) -> Any:
    """float32 if the weights and the pass fit into `memory`, else `auto`, the stored type. Errors: LimitError if neither does."""
    header = header_of(folder)
    parameters, stored = (sum(getattr(t, what) for t in header.tensors.values()) for what in ("size", "bytes"))
    if 4 * parameters * SPARE <= memory:
        return torch.float32
    if stored * SPARE <= memory:
        return "auto"
    raise LimitError(
        f"{folder} takes {stored * SPARE / 2**30:.1f} GiB of memory, the limit is {memory / 2**30:.1f}: measure it on a larger machine, "
        "`compeft base-stats DIR -o FILE`, and pack with --base FILE"
    )


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@contextmanager
def _recorded(model: Any) -> Iterator[Callable[[], dict[str, ModuleStatistics]]]:
    """Sum the squares of the gradients at the output of every module with a matrix, in every backward pass inside; yield what gives
    their rms.
    """
    sums: dict[str, list[float]] = {}
    embeddings = model.get_input_embeddings()
    handles: list[Any] = [embeddings.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())]
    modules = {
        name: m for name, m in model.named_modules() if isinstance(getattr(m, "weight", None), Tensor) and m.weight.dim() > 1
    }
    handles += [module.register_forward_hook(_hook(sums.setdefault(name, [0.0, 0.0]))) for name, module in modules.items()]
    try:
        yield lambda: {
            name: ModuleStatistics(modules[name].weight.numel(), _rounded((squares / count) ** 0.5))
            for name, (squares, count) in sums.items()
            if count
        }
    finally:
        for handle in handles:
            handle.remove()


def _hook(row: list[float]) -> Callable[..., None]:
    """Adds the squares of the output's gradient, and their number, to a row."""

    def backward(gradient: Tensor) -> None:
        row[0] += float(gradient.double().square().sum())
        row[1] += gradient.numel()

    def forward(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(backward)  # type: ignore[no-untyped-call]  # torch ships no annotation for it

    return forward


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS - 1}e}")
