"""A tiny Llama with a LoRA, as transformers folders and as a GGUF base file: what a small engine can load on the spot."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter, TokenType
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

HEADS, SHARED, LAYERS, WIDTH, INNER, VOCABULARY = 4, 2, 2, 64, 96, 320
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPTS = ([5, 77, 130, 9, 201, 44], [300, 12, 12, 250], [8])


def base_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=SHARED,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data[:259] = 0  # control and byte tokens are never the likeliest: each answer is whole text
    return model


def write_lora(folder: Path, targets: list[str] = LINEAR, seed: int = 1, **config: Any) -> Path:
    """A trained-looking LoRA of `base_model()` as PEFT saves it."""
    model = get_peft_model(base_model(), LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets} | config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def last_log_probabilities(prompt: list[int], lora: Path | None = None) -> np.ndarray:
    """float32 (VOCABULARY,): of the next token."""
    model: torch.nn.Module = base_model()
    if lora is not None:
        model = PeftModel.from_pretrained(base_model(), lora).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    return torch.log_softmax(logits.float(), -1).numpy()


def write_base_gguf(file: Path) -> Path:
    """`base_model()` as llama.cpp's converter would write it: names, rows of q and k in pairs, a vocabulary of bytes and numbers."""
    model, writer = base_model(), GGUFWriter(file, "llama")
    config = model.config
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCABULARY)
    _add_vocabulary(writer)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(*_converted(name, tensor.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _converted(name: str, values: np.ndarray) -> tuple[str, np.ndarray]:
    words = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    words |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    words |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in top:
        return top[name], values
    parts = name.split(".")
    if parts[-2] in ("q_proj", "k_proj"):
        heads = HEADS if parts[-2] == "q_proj" else SHARED
        half = values.shape[0] // heads // 2
        rows = [h * 2 * half + side * half + i for h in range(heads) for i in range(half) for side in (0, 1)]
        values = values[rows]
    return f"blk.{parts[2]}.{words[parts[-2]]}.weight", values


def _add_vocabulary(writer: GGUFWriter) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += [f"▁n{i}" for i in range(VOCABULARY - len(tokens))]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    kinds += [TokenType.NORMAL] * (VOCABULARY - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
