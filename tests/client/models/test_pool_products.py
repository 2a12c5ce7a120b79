"""ExpertPool with files of products: what is active computes what the unpacked adapter does, for plain LoRA and DoRA, any adapter name."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from compeft_client.models.expert_pool import ExpertPool
from compeft_client.packing.pack import PackSettings, save_compressed, unpack

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}


def base() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(intermediate_size=48, **SIZES)).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.arange(24).reshape(2, 12)).logits
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("dora", "targets", "adapter"),
    [
        (False, ["q_proj"], "default"),
        (False, ["q_proj"], "0"),
        (True, ["q_proj"], "model"),
        (False, ["embed_tokens", "q_proj"], "layers"),
    ],
)
def test_a_file_of_products_is_switched_to_what_it_unpacks_to(
    tmp_path: Path, dora: bool, targets: list[str], adapter: str
) -> None:
    config = {"r": 4, "lora_alpha": 8, "target_modules": targets, "use_dora": dora}
    tuned = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **config))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    save_compressed(tmp_path / "a", tmp_path / "a.expert", PackSettings(quality=0.9))
    unpack(tmp_path / "a.expert", tmp_path / "back")
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **config), adapter_name=adapter)
    with ExpertPool(model, adapter=adapter) as pool:
        pool.add("x", tmp_path / "a.expert")
        with pool.using("x"):
            got = logits(model)
        assert torch.equal(logits(model), logits(base()))
    torch.testing.assert_close(got, logits(PeftModel.from_pretrained(base(), tmp_path / "back")))
