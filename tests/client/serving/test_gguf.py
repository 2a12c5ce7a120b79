"""GGUF adapters, loaded by the real llama.cpp (PyPI xllamacpp): what it computes with one is what PEFT computes."""

import json
from pathlib import Path

import numpy as np
import pytest
import xllamacpp
from gguf import GGUFReader

from compeft_client.cli.main import run
from compeft_client.packing.pack import PackSettings, save_compressed, unpack
from compeft_client.serving.gguf_adapter import write_gguf
from compeft_client.serving.gguf_base import read_base
from compeft_core.errors import FormatError, InputError
from tests.client.delivery.conftest import PACKAGE, publisher
from tests.client.serving import tiny_llama
from tests.rounds.conftest import World

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.write_base_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def of_llama_cpp(base: Path, prompts: object, lora: Path | None = None) -> list[np.ndarray]:
    """Log probabilities of the next token after each prompt, (320,) each."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = str(base), 128, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if lora is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
    server = xllamacpp.Server(params)
    found = []
    for prompt in prompts:  # type: ignore[attr-defined]
        request = {"prompt": prompt, "n_predict": 1, "logprobs": tiny_llama.VOCABULARY, "temperature": 0.0, "n_probs": 320}
        answer = server.handle_completions(request)
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        rows = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        values = np.full(tiny_llama.VOCABULARY, np.nan, np.float32)
        for row in rows:
            values[row["id"]] = row["logprob"]
        found.append(values)
    return found


def test_the_tiny_base_is_the_same_model_in_llama_cpp(base: Path) -> None:
    for prompt, got in zip(tiny_llama.PROMPTS, of_llama_cpp(base, tiny_llama.PROMPTS), strict=True):
        np.testing.assert_allclose(got, tiny_llama.last_log_probabilities(prompt), atol=2e-3)


@pytest.mark.parametrize(
    "config",
    [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"down_proj": 3}}],
    ids=["plain", "rslora", "patterns"],
)
def test_an_unpacked_expert_changes_llama_cpp_as_it_changes_peft(tmp_path: Path, base: Path, config: dict[str, object]) -> None:
    lora = tiny_llama.write_lora(tmp_path / "lora", **config)
    save_compressed(lora, tmp_path / "a.expert", PackSettings(quality=0.9))
    unpack(tmp_path / "a.expert", tmp_path / "back")
    said = ["unpack", str(tmp_path / "a.expert"), "-o", str(tmp_path / "a.gguf"), "--as", "gguf", "--base", str(base)]
    assert run(said) == 0
    got = of_llama_cpp(base, tiny_llama.PROMPTS, tmp_path / "a.gguf")
    for prompt, found in zip(tiny_llama.PROMPTS, got, strict=True):
        wanted = tiny_llama.last_log_probabilities(prompt, tmp_path / "back")
        np.testing.assert_allclose(found, wanted, atol=2e-3)
        assert np.abs(wanted - tiny_llama.last_log_probabilities(prompt)).max() > 0.5


def test_a_base_folder_and_a_base_file_make_the_same_adapter(tmp_path: Path, base: Path) -> None:
    tiny_llama.base_model().save_pretrained(tmp_path / "base")
    lora = tiny_llama.write_lora(tmp_path / "lora")
    for name, of in (("a", base), ("b", tmp_path / "base")):
        write_gguf(lora, tmp_path / f"{name}.gguf", read_base(of))
    a, b = (GGUFReader(tmp_path / f"{name}.gguf").tensors for name in "ab")
    assert [t.name for t in a] == [t.name for t in b]
    assert all(np.array_equal(x.data, y.data) for x, y in zip(a, b, strict=True))
    assert len(a) == 2 * 7 * tiny_llama.LAYERS


def test_the_file_says_what_llama_cpps_converter_says(tmp_path: Path, base: Path) -> None:
    lora = tiny_llama.write_lora(tmp_path / "lora", targets=["q_proj"], lora_alpha=24)
    written = write_gguf(lora, tmp_path / "a.gguf", read_base(base))
    reader = GGUFReader(tmp_path / "a.gguf")
    fields = {key: reader.get_field(key).contents() for key in ("general.type", "adapter.type", "adapter.lora.alpha")}
    assert fields == {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 24.0}
    assert [t.name for t in reader.tensors][:2] == ["blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"]
    assert (written.modules, written.total_bytes) == (2, (tmp_path / "a.gguf").stat().st_size)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "has use_dora True, which llama.cpp does not load: merge it"),
        ({"targets": ["embed_tokens"]}, "llama.cpp loads LoRA of linear layers only"),
        ({"modules_to_save": ["lm_head"]}, r"has modules_to_save \['lm_head'\], which llama.cpp does not load"),
    ],
    ids=["dora", "embeddings", "saved layer"],
)
def test_what_llama_cpp_cannot_load_is_refused_by_name(tmp_path: Path, base: Path, config: dict[str, object], words: str) -> None:
    lora = tiny_llama.write_lora(tmp_path / "lora", **{"targets": ["q_proj"]} | config)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=words):
        write_gguf(lora, tmp_path / "a.gguf", read_base(base))
    assert not (tmp_path / "a.gguf").exists()


def test_another_base_is_refused_before_anything_is_written(tmp_path: Path, base: Path) -> None:
    lora = tiny_llama.write_lora(tmp_path / "lora", targets=["q_proj"])
    model = tiny_llama.base_model()
    model.config.num_hidden_layers = 1
    model.config.save_pretrained(tmp_path / "short")
    (tmp_path / "short" / "config.json").write_text(
        json.dumps(json.loads((tmp_path / "short" / "config.json").read_text()) | {"architectures": ["LlamaForCausalLM"]})
    )
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj' is not a module of a llama model of 1 layers"):
        write_gguf(lora, tmp_path / "a.gguf", read_base(tmp_path / "short"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(
        '{"architectures": ["GPTBigCode"], "num_hidden_layers": 1, "num_attention_heads": 1}'
    )
    with pytest.raises(InputError, match="architecture 'GPTBigCode', supported: Gemma2ForCausalLM"):
        read_base(tmp_path / "other")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 40)
    with pytest.raises(FormatError, match="cannot be read as GGUF"):
        read_base(tmp_path / "broken.gguf")


def test_as_and_base_are_given_together(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = tiny_llama.write_lora(tmp_path / "lora", targets=["q_proj"])
    save_compressed(lora, tmp_path / "a.expert")
    said = ["unpack", str(tmp_path / "a.expert"), "-o", str(tmp_path / "a.gguf")]
    assert run([*said, "--as", "gguf"]) == 3
    assert "--as gguf needs --base" in capsys.readouterr().err
    assert run([*said, "--base", str(base)]) == 3
    assert "is for --as gguf" in capsys.readouterr().err
    (tmp_path / "a.gguf").write_text("mine")
    assert run([*said, "--as", "gguf", "--base", str(base)]) == 3
    assert "exists already: give --force" in capsys.readouterr().err
    assert (tmp_path / "a.gguf").read_text() == "mine"


def test_a_pulled_expert_is_written_as_gguf(world: World, tmp_path: Path, base: Path) -> None:
    lora = tiny_llama.write_lora(tmp_path / "lora", targets=["q_proj"])
    save_compressed(lora, tmp_path / "a.expert", PackSettings(quality=0.9))
    unpack(tmp_path / "a.expert", tmp_path / "back")
    with publisher(world) as client:
        client.push(PACKAGE, (tmp_path / "a.expert").read_bytes())
    key = world.enrol("reader")
    (tmp_path / "reader.key").write_bytes(key.to_pem())
    (tmp_path / "reader.key").chmod(0o600)
    (tmp_path / "aggregator.pub").write_bytes(world.aggregator.public.to_pem())
    reach = ["--aggregator", world.address, "--aggregator-key", str(tmp_path / "aggregator.pub")]
    reach += ["--key", str(tmp_path / "reader.key"), "--state-dir", str(tmp_path / "state")]
    said = ["pull", PACKAGE, "-o", str(tmp_path / "pulled.gguf"), "--as", "gguf", "--base", str(base), *reach]
    assert run(said) == 0
    write_gguf(tmp_path / "back", tmp_path / "back.gguf", read_base(base))
    tensors = [GGUFReader(tmp_path / name).tensors for name in ("pulled.gguf", "back.gguf")]
    assert all(np.array_equal(x.data, y.data) for x, y in zip(*tensors, strict=True))
