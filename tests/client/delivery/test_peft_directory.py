"""A synced expert written as a PEFT directory: PEFT loads it, and it computes what the vector says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file
from transformers.models.bert.modeling_bert import BertConfig, BertModel

from compeft_client.delivery.peft_directory import write_peft_directory
from compeft_client.exchange.edge_client import Synced
from compeft_client.models.adapter import adapter_arrays, load_adapter
from compeft_core import flatten, layout_of
from compeft_proto.round_task import canonical_json

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft asks transformers

CONFIG: dict[str, object] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}


def base() -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
    return BertModel(BertConfig(**sizes), add_pooling_layer=False).eval()


def test_a_written_expert_loads_in_peft_and_computes_the_same(tmp_path: Path) -> None:
    tuned, random = get_peft_model(base(), LoraConfig(**CONFIG)), np.random.default_rng(0)
    arrays = {n: random.normal(0, 0.1, a.shape).astype(np.float32) for n, a in adapter_arrays(tuned).items()}
    load_adapter(tuned, arrays)
    tensors = arrays | {"head.weight": np.ones((2, 32), np.float32), "head.bias": np.zeros(2, np.float32)}
    layout = layout_of({n: a.shape for n, a in tensors.items()}, dense=["head.weight", "head.bias"])
    write_peft_directory(tmp_path, Synced("e", 3, layout, flatten(layout, tensors), canonical_json(CONFIG)))

    loaded = PeftModel.from_pretrained(base(), str(tmp_path))
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        assert torch.equal(loaded(input_ids=ids).last_hidden_state, tuned(input_ids=ids).last_hidden_state)
    assert set(load_file(tmp_path / "head.safetensors")) == {"head.weight", "head.bias"}
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == CONFIG
