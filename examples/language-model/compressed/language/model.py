"""The base model, its tokenizer and a fresh adapter. No Flower in here.

`model` of the run's configuration is a folder or a name that transformers loads; "tiny" makes a random model of two layers on the spot,
which learns nothing worth having and needs no file.
"""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

Run = dict[str, Any]
TINY = "tiny"
END = "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load(run: Run) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The frozen base with a fresh LoRA (or DoRA) on all linear layers, drawn from the run's seed, and the tokenizer.

    On CUDA in bfloat16, or in 4 bits with `four-bit` (bitsandbytes); else in float32.
    """
    torch.set_num_threads(int(run["threads"]))
    base, tokenizer = tiny() if run["model"] == TINY else stored(run)
    if run["gradient-checkpointing"]:
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        base.enable_input_require_grads()
    torch.manual_seed(int(run["seed"]))
    lora = LoraConfig(
        r=int(run["rank"]),
        lora_alpha=int(run["alpha"]),
        use_dora=bool(run["dora"]),
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora), tokenizer


def stored(run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model and tokenizer of a folder or a name."""
    name, cuda = str(run["model"]), torch.cuda.is_available()
    settings: Run = {"dtype": torch.bfloat16, "device_map": {"": 0}} if cuda else {"dtype": torch.float32}
    if run["four-bit"] and cuda:
        from transformers import BitsAndBytesConfig

        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    base = AutoModelForCausalLM.from_pretrained(name, **settings)
    if "quantization_config" in settings:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=bool(run["gradient-checkpointing"]))
    return base, AutoTokenizer.from_pretrained(name)


def tiny() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A random Llama of two layers and a tokenizer of bytes with ChatML turns; the same on every machine."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = {letter: number for number, letter in enumerate(letters)}
    bytes_only = Tokenizer(models.BPE(vocab=known, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token=END, pad_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(shape), tokenizer
