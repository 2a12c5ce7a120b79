"""Real adapters of real (tiny) models: what unpacks loads in PEFT and computes what the decoded values compute."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from compeft_client.cli.main import run
from compeft_client.packing.pack import PackSettings, from_compressed, load_compressed, save_compressed, unpack
from compeft_core.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")
Model = Callable[[], PreTrainedModel]


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=100, num_labels=3, **sizes)).eval()


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes)).eval()


CASES: dict[str, tuple[Model, PeftConfig]] = {
    "lora": (bert, LoraConfig(r=8, target_modules=["query", "value"])),
    "rslora with a head": (bert, LoraConfig(r=8, use_rslora=True, target_modules=["query"], modules_to_save=["classifier"])),
    "dora": (llama, LoraConfig(r=8, use_dora=True, target_modules=["q_proj", "up_proj"])),
    "ranks by pattern": (llama, LoraConfig(r=8, rank_pattern={"q_proj": 2}, target_modules=["q_proj", "v_proj"])),
    "embedding": (llama, LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"])),
    "ia3": (llama, IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
}


def trained(case: str, folder: Path, dtype: torch.dtype) -> Path:
    """A saved adapter whose parameters have moved; `untrained` beside it is where it started."""
    model, config = CASES[case]
    tuned = get_peft_model(model(), config)
    tuned.save_pretrained(folder / "untrained")
    for _, parameter in sorted(tuned.named_parameters()):
        if parameter.requires_grad:
            parameter.data = (parameter.data + 0.02 * torch.randn_like(parameter)).to(dtype)
    tuned.save_pretrained(folder / "tuned")
    return folder / "tuned"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.arange(24).reshape(2, 12)).logits
    return found


@pytest.mark.parametrize("start_known", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_what_unpacks_computes_what_the_decoded_values_compute(case: str, start_known: bool, tmp_path: Path) -> None:
    directory = trained(case, tmp_path, torch.float32)
    init = str(tmp_path / "untrained") if start_known else None
    file = tmp_path / "x.expert"
    save_compressed(directory, file, PackSettings(density=0.2, init=init))
    unpack(file, tmp_path / "back", init=init)
    by_hand = PeftModel.from_pretrained(CASES[case][0](), directory)
    arrays = load_compressed(file, init=init).tensors["adapter_model.safetensors"]
    set_peft_model_state_dict(by_hand, {name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    expected = logits(by_hand)
    assert torch.equal(logits(PeftModel.from_pretrained(CASES[case][0](), tmp_path / "back")), expected)
    assert torch.equal(logits(from_compressed(CASES[case][0](), file, init=init)), expected)
    assert not torch.equal(expected, logits(CASES[case][0]()))
    assert (tmp_path / "back/adapter_config.json").read_bytes() == (directory / "adapter_config.json").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensors_come_back_in_the_type_they_had(dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    directory = trained("rslora with a head", tmp_path, dtype)
    save_compressed(directory, tmp_path / "x.expert")
    unpack(tmp_path / "x.expert", tmp_path / "back")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (directory, tmp_path / "back"))
    assert {n: (t.dtype, t.shape) for n, t in after.items()} == {n: (t.dtype, t.shape) for n, t in before.items()}
    assert any(t.dtype == dtype for t in after.values())


def test_a_full_checkpoint_does_not_load_as_an_adapter(tmp_path: Path) -> None:
    model = bert()
    model.save_pretrained(tmp_path / "base")
    model.classifier.weight.data += 1
    model.save_pretrained(tmp_path / "tuned")
    init = str(tmp_path / "base")
    save_compressed(tmp_path / "tuned", tmp_path / "x.expert", PackSettings(init=init))
    with pytest.raises(InputError, match="full checkpoint"):
        from_compressed(bert(), tmp_path / "x.expert", init=init)
    unpack(tmp_path / "x.expert", tmp_path / "back", init=init)
    again = BertForSequenceClassification.from_pretrained(tmp_path / "back").eval()
    torch.testing.assert_close(logits(again), logits(model), atol=2e-2, rtol=0)


MIXED = [
    LoraConfig(r=8, lora_alpha=4, rank_pattern={"q_proj": 2}, target_modules=["q_proj", "v_proj"]),
    LoraConfig(r=3, lora_alpha=9, use_rslora=True, alpha_pattern={"v_proj": 2}, target_modules=["q_proj", "v_proj"]),
]


def test_peft_computes_with_a_merged_adapter_the_mean_of_what_it_computes_with_each(tmp_path: Path) -> None:
    """Two ranks, two scalings, patterns: PEFT's own idea of each module's change is what is averaged."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, config in zip(folders, MIXED, strict=True):
        tuned = get_peft_model(llama(), config)
        for _, parameter in sorted(tuned.named_parameters()):
            if parameter.requires_grad:
                parameter.data = parameter.data + 0.02 * torch.randn_like(parameter)
        tuned.save_pretrained(folder)
    assert run(["merge", *map(str, folders), "-o", str(tmp_path / "out"), "--weights", "1,3"]) == 0
    changes = [changes_of(PeftModel.from_pretrained(llama(), folder)) for folder in (*folders, tmp_path / "out")]
    assert len(changes[0]) == 4
    for name, merged in changes[2].items():
        torch.testing.assert_close(merged, (changes[0][name] + 3 * changes[1][name]) / 4, atol=1e-6, rtol=1e-4)


def changes_of(model: PeftModel) -> dict[str, torch.Tensor]:
    """What PEFT adds to each adapted matrix."""
    return {n: m.get_delta_weight("default") for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
