"""`compeft base-stats` and packing by it: tiny base models, made here."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from compeft_client.checkpoints.base_model_digest import weights_digest
from compeft_client.cli.main import run
from compeft_client.models.measure_base import TEXT, measure_base, passages
from compeft_client.packing.base_statistics import (
    BaseStatistics,
    ModuleStatistics,
    cache_path,
    product_weights,
    read_statistics,
    write_statistics,
)
from compeft_client.packing.expert_file import open_expert
from compeft_core.errors import CompeftError, FormatError, InputError, LimitError
from compeft_proto.lora_modules import LoraModule
from tests.client import builders

WIDTH, RANK = 48, 4
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
INTO = {"mlp.down_proj": 96}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("compeft_client.models.measure_base.passages", lambda: passages()[:3])
    monkeypatch.chdir(tmp_path)


def tokenizer() -> PreTrainedTokenizerFast:
    words = sorted({word for text in passages() for word in text.split()})
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(["?", *words])}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?")


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer()), **size)).eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("base"), llama())


def adapter(folder: Path, name: str = "org/base") -> Path:
    random, tensors = np.random.default_rng(0), {}
    for layer in range(2):
        for target in TARGETS:
            module = f"base_model.model.model.layers.{layer}.{target}"
            tensors[f"{module}.lora_A.weight"] = random.standard_normal((RANK, INTO.get(target, WIDTH))).astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = random.standard_normal((WIDTH, RANK)).astype(np.float32)
    return builders.write_adapter(folder, tensors, base_model_name_or_path=name)


def bytes_of_pack(*arguments: str) -> bytes:
    assert run(["pack", "adapter", "-o", "out.expert", "--times", "8", "--force", *arguments]) == 0
    return Path("out.expert").read_bytes()


def payloads_by(base: str) -> list[bytes]:
    """At a quality, which the length of the manifest does not change."""
    assert run(["pack", "adapter", "-o", "out.expert", "--quality", "0.9", "--force", "--base", base]) == 0
    return [part.payload_sha256 for part in open_expert(Path("out.expert")).manifest.parts]


def test_a_module_whose_output_the_rest_ignores_has_a_small_gradient(base: Path, tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e-3)
    plain, muted = measure_base(base), measure_base(saved(tmp_path / "muted", model))
    name = "model.layers.1.mlp.up_proj"
    assert muted.modules[name].gradient < 0.01 * plain.modules[name].gradient
    assert muted.modules[name].parameters == WIDTH * 96
    assert {n.rsplit(".", 1)[-1] for n in plain.modules} >= {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"}


def test_the_gradient_is_the_root_mean_square_at_the_output_over_all_tokens(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compeft_client.models.measure_base.passages", lambda: passages()[:1])
    found = measure_base(base).modules["lm_head"].gradient
    model, ids = LlamaForCausalLM.from_pretrained(base), torch.tensor([tokenizer()(passages()[0])["input_ids"][:96]])
    probabilities = model(ids).logits[0].softmax(-1).detach()
    drawn = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(0))
    gradient = probabilities.scatter_add(1, drawn, -torch.ones(drawn.shape))  # of the cross entropy: softmax minus one-hot
    assert abs(found / float(gradient.square().mean().sqrt()) - 1) < 1e-3


def test_measuring_twice_gives_the_same_and_the_digests_name_base_and_text(base: Path) -> None:
    first = measure_base(base)
    assert measure_base(base) == first
    assert first.weights_digest == weights_digest(base)
    assert len(passages()) > 40
    assert TEXT.read_text(encoding="utf-8").startswith("# ")


def test_an_encoder_is_measured_too(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=len(tokenizer()), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    found = measure_base(saved(tmp_path / "bert", BertModel(config)))
    assert found.modules["encoder.layer.0.attention.self.query"].gradient > 0
    assert "pooler.dense" not in found.modules


def test_a_base_beyond_the_memory_and_a_folder_without_one_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(LimitError, match="compeft base-stats"):
        measure_base(base, memory=1000)
    with pytest.raises(InputError, match="no weights"):
        measure_base(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="cannot load the base model"):
        measure_base(tmp_path)


def test_packing_by_a_file_and_by_the_folder_is_the_same_and_other_than_without(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter(Path("adapter"))
    plain = bytes_of_pack()
    assert run(["base-stats", str(base), "-o", "base.json", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["weights_digest"] == weights_digest(base).hex()
    by_file = bytes_of_pack("--base", "base.json")
    assert "modules weighed by how much" in capsys.readouterr().out
    by_folder = bytes_of_pack("--base", str(base))
    assert payloads_by("base.json") == payloads_by(str(base)) != payloads_by("none")
    assert len({plain, by_file, by_folder}) == 3, "beside the payloads, a folder lets the file name its base"
    assert cache_path(weights_digest(base)).exists()
    assert run(["unpack", "out.expert", "-o", "back"]) == 0
    assert set(load_file("back/adapter_model.safetensors")) == set(load_file("adapter/adapter_model.safetensors"))


def test_a_base_in_the_local_cache_is_taken_by_itself_unless_told_not_to(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter(Path("adapter"))
    plain = bytes_of_pack()
    snapshot = Path("hub/models--org--base/snapshots/abc")
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(base)
    Path("hub/models--org--base/refs").mkdir()
    Path("hub/models--org--base/refs/main").write_text("abc")
    assert bytes_of_pack("--base", "none") == plain
    aware = bytes_of_pack()
    assert aware != plain
    assert "how much org/base minds" in capsys.readouterr().out
    Path("hub/models--org--base/refs/main").write_text("other")
    assert bytes_of_pack() == plain


def test_an_encoder_in_the_local_cache_is_not_taken_by_itself(base: Path) -> None:
    adapter(Path("adapter"))
    plain = bytes_of_pack()
    snapshot = Path("hub/models--org--base/snapshots/abc")
    shutil.copytree(base, snapshot)
    Path("hub/models--org--base/refs").mkdir()
    Path("hub/models--org--base/refs/main").write_text("abc")
    fields = json.loads((snapshot / "config.json").read_text())
    for architectures in (["BertModel"], None, "x"):
        (snapshot / "config.json").write_text(json.dumps(fields | {"architectures": architectures}))
        assert bytes_of_pack() == plain


def test_ternary_values_and_another_base_are_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter(Path("adapter"))
    assert run(["base-stats", str(base), "-o", "base.json"]) == 0
    assert run(["pack", "adapter", "--density", "0.1", "--base", "base.json"]) == 3
    assert "--base are of products" in capsys.readouterr().err
    values = json.loads(Path("base.json").read_text())
    values["modules"] = {"model.layers.0.self_attn.q_proj": {"parameters": 7, "gradient": 1.0}}
    Path("base.json").write_text(json.dumps(values))
    assert run(["pack", "adapter", "--base", "base.json"]) == 3
    assert "is 48 x 48 in the adapter and has 7 entries" in capsys.readouterr().err
    assert run(["pack", "adapter", "--base", "nowhere"]) == 3
    assert not Path("adapter.expert").exists()


def lora(name: str, slices: int = 1) -> LoraModule:
    return LoraModule(f"base_model.model.{name}", "a", "b", (4 * slices, 10), (6, 4 * slices), slices)


def statistics(**gradients: float) -> BaseStatistics:
    modules = {name.replace("_", "."): ModuleStatistics(60, value) for name, value in gradients.items()}
    return BaseStatistics("tiny", bytes(32), bytes(32), modules)


def test_weights_are_roots_of_gradients_with_a_geometric_mean_of_one() -> None:
    given = statistics(x_q=4.0, x_v=1.0)
    assert product_weights(given, [lora("x.q"), lora("x.v")]) == pytest.approx([2**0.5, 2**-0.5])
    assert product_weights(given, [lora("x.q", 2), lora("x.v"), lora("x.other")]) == pytest.approx([2**0.5] * 2 + [2**-0.5, 1.0])


@pytest.mark.parametrize("wrapper", ["", "bert.", "model.language."])
def test_modules_are_found_below_a_wrapper_of_the_adapter_or_of_the_base(wrapper: str) -> None:
    short, long = statistics(x_q=4.0, x_v=1.0), statistics(deep_x_q=4.0, deep_x_v=1.0)
    wanted = pytest.approx([2**0.5, 2**-0.5])
    assert product_weights(short, [lora(f"{wrapper}x.q"), lora(f"{wrapper}x.v")]) == wanted
    assert product_weights(long, [lora("x.q"), lora("x.v")]) == wanted


def test_a_base_without_the_modules_is_another_base() -> None:
    with pytest.raises(InputError, match=r"has no module y\.q"):
        product_weights(statistics(x_q=1.0), [lora("y.q")])


def test_statistics_are_read_as_written(tmp_path: Path) -> None:
    given = statistics(x_q=0.25, x_v=3e-5)
    write_statistics(tmp_path / "new" / "file.json", given)
    assert read_statistics(tmp_path / "new" / "file.json") == given


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"weights_digest": "xy"},
        {"modules": [1]},
        {"modules": {"x": {"parameters": 1}}},
        {"modules": {"x": {"parameters": 0, "gradient": 1.0}}},
        {"modules": {"x": {"parameters": 5, "gradient": -1.0}}},
        {"modules": {"x": {"parameters": 5, "gradient": "much"}}},
        {"modules": {"x": {"parameters": 5, "gradient": float("nan")}}},
    ],
    ids=str,
)
def test_a_file_with_anything_else_in_it_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    file = tmp_path / "file.json"
    write_statistics(file, statistics(x_q=0.25))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(FormatError):
        read_statistics(file)


@pytest.mark.parametrize(
    "octets", [b"", b"[]", b"\xff\xfe", b"[" * 10_000, b"3"], ids=["empty", "list", "text", "deep", "number"]
)
def test_bytes_that_are_no_statistics_are_refused(tmp_path: Path, octets: bytes) -> None:
    (tmp_path / "file.json").write_bytes(octets)
    with pytest.raises(CompeftError):
        read_statistics(tmp_path / "file.json")
