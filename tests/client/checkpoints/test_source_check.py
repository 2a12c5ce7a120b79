"""One check of the source: refuses files that are not an adapter, and names files of an adapter that are left out."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compeft_client.checkpoints.source import read_source
from compeft_client.checkpoints.source_check import notes_of
from compeft_client.checkpoints.tensor_names import plain_names
from compeft_client.packing.pack import PackSettings, save_compressed, unpack
from compeft_core.errors import InputError, NotFiniteError
from tests.client import builders

HEAD = "base_model.model.classifier.weight"


def packed_and_back(folder: Path) -> Path:
    save_compressed(folder, folder.with_suffix(".expert"), force=True)
    unpack(folder.with_suffix(".expert"), folder.with_name("back"))
    return folder.with_name("back")


@pytest.mark.parametrize("shape", [(0,), (0, 64), (64, 0)])
@pytest.mark.parametrize("name", [builders.names()[0], builders.names()[1], "base_model.model.lm_head.weight"])
def test_an_empty_tensor_is_refused_with_its_cause(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    adapter = builders.write_adapter(tmp_path / "a", builders.tuned(builders.initial()) | {name: np.zeros(shape, np.float32)})
    with pytest.raises(InputError, match=r"size 0.*ZeRO-3"):
        read_source(adapter)


def test_a_flat_factor_is_refused_as_a_shard(tmp_path: Path) -> None:
    flat = {builders.names()[0]: np.zeros(128, np.float32)}
    with pytest.raises(InputError, match="a factor of LoRA is a matrix"):
        read_source(builders.write_adapter(tmp_path / "a", builders.tuned(builders.initial()) | flat))


@pytest.mark.parametrize(
    ("found", "plain"),
    [
        ("a.q.lora_A.default.weight", "a.q.lora_A.weight"),
        ("a.q.lora_B.my-task_2.weight", "a.q.lora_B.my-task_2.weight".replace(".my-task_2", "")),
        ("a.embed.lora_embedding_A.default", "a.embed.lora_embedding_A"),
        ("a.q.lora_magnitude_vector.default.weight", "a.q.lora_magnitude_vector"),
        ("a.q.lora_magnitude_vector.default", "a.q.lora_magnitude_vector"),
        ("a.classifier.modules_to_save.default.weight", "a.classifier.weight"),
        ("a.score.modules_to_save.default.dense.bias", "a.score.dense.bias"),
        ("a._fsdp_wrapped_module.q._orig_mod.lora_A.weight", "a.q.lora_A.weight"),
        ("module.base_model.model.q.lora_A.default.weight", "base_model.model.q.lora_A.weight"),
        ("a.q.lora_A.weight", "a.q.lora_A.weight"),
        ("a.q.lora_B.bias", "a.q.lora_B.bias"),
        ("a.default.lora_A.weight", "a.default.lora_A.weight"),
        ("a.embed.lora_embedding_B", "a.embed.lora_embedding_B"),
        ("a.embed.token_adapter.trainable_tokens_delta.default", "a.embed.token_adapter.trainable_tokens_delta"),
    ],
)
def test_names_of_raw_state_dicts_become_those_that_peft_saves(found: str, plain: str) -> None:
    assert plain_names([found]).names[found] == plain


@pytest.mark.parametrize("others", [["m.lora_A.b.weight"], ["m.lora_A.weight"]])
def test_two_adapters_in_one_file_are_refused(others: list[str]) -> None:
    with pytest.raises(InputError, match=r"save each by itself|there twice"):
        plain_names(["m.lora_A.default.weight", *others])


def test_an_adapters_name_inside_tensor_names_costs_no_byte_and_is_said(tmp_path: Path) -> None:
    tensors = builders.tuned(builders.initial())
    plain = builders.write_adapter(tmp_path / "plain", tensors)
    raw = builders.write_adapter(tmp_path / "raw", {n.replace(".weight", ".default.weight"): v for n, v in tensors.items()})
    assert "'default'" in notes_of(read_source(raw))[0]
    sizes = [save_compressed(folder, tmp_path / f"{folder.name}.expert").total_bytes for folder in (plain, raw)]
    assert sizes[0] == sizes[1]
    assert set(load_file(packed_and_back(raw) / "adapter_model.safetensors")) == set(tensors)


@pytest.mark.parametrize(("zero", "word"), [(("B",), "all 2"), ((".0.q_proj.lora_B",), "1 of 2")])
def test_factors_that_were_never_trained_are_said(tmp_path: Path, zero: tuple[str, ...], word: str) -> None:
    tensors = {n: v * (not any(z in n for z in zero)) for n, v in builders.tuned(builders.initial()).items()}
    packed = save_compressed(builders.write_adapter(tmp_path / "a", tensors), tmp_path / "a.expert")
    assert [note for note in packed.notes if "never trained" in note and word in note]


def test_a_trained_adapter_has_no_notes(adapter: Path) -> None:
    assert notes_of(read_source(adapter)) == []


def test_files_that_belong_to_an_adapter_travel_or_are_named(tmp_path: Path) -> None:
    adapter = builders.write_adapter(tmp_path / "a", builders.tuned(builders.initial()))
    head = {"v_head.summary.weight": np.full((1, 64), 1.5, np.float32)}
    rows = {"input_embeddings": np.arange(192, dtype=np.float32).reshape(3, 64)}
    save_file(head, adapter / "value_head.safetensors")
    save_file(rows, adapter / "new_embeddings.safetensors")
    (adapter / "README.md").write_text("---\nlibrary_name: peft\n---\n# An expert\n")
    for name in (
        "tokenizer.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "value_head.bin",
        "optimizer.pt",
        "notes.md",
    ):
        (adapter / name).write_text("{}")
    notes = notes_of(read_source(adapter))
    back = packed_and_back(adapter)
    assert (back / "README.md").read_bytes() == (adapter / "README.md").read_bytes()
    assert np.array_equal(load_file(back / "value_head.safetensors")["v_head.summary.weight"], head["v_head.summary.weight"])
    assert np.array_equal(load_file(back / "new_embeddings.safetensors")["input_embeddings"], rows["input_embeddings"])
    assert notes == [
        "left out, copy them yourself if the expert needs them: chat_template.jinja, special_tokens_map.json, tokenizer.json, "
        "value_head.bin"
    ]


@pytest.mark.parametrize("file", ["value_head.safetensors", "new_embeddings.safetensors"])
def test_an_empty_file_of_tensors_beside_an_adapter_is_refused(adapter: Path, file: str) -> None:
    save_file({"v_head.summary.weight": np.zeros((0, 64), np.float32)}, adapter / file)
    with pytest.raises(InputError, match="size 0"):
        read_source(adapter)


@pytest.mark.parametrize("shape", [(16, 64), (40, 64), (3, 5)])
def test_a_float16_head_comes_back_as_it_was(tmp_path: Path, shape: tuple[int, int]) -> None:
    tensors = {n: v.astype(np.float16) for n, v in builders.tuned(builders.initial()).items()}
    tensors[HEAD] = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    back = packed_and_back(builders.write_adapter(tmp_path / "a", tensors, modules_to_save=["classifier"]))
    assert np.array_equal(load_file(back / "adapter_model.safetensors")[HEAD], tensors[HEAD])


@pytest.mark.parametrize(
    ("dtype", "value"), [(np.float16, -65504.0), (np.float16, -np.inf), (np.float32, -np.inf), (np.float32, -3.4028235e38)]
)
@pytest.mark.parametrize("shape", [(64, 64), (8,)])
def test_a_mask_of_the_largest_value_or_infinity_comes_back_as_it_was(
    tmp_path: Path, dtype: type, value: float, shape: tuple[int, ...]
) -> None:
    mask = np.zeros(shape, dtype)
    mask.flat[::3] = value
    tensors = builders.tuned(builders.initial()) | {"base_model.model.attn.mask": mask}
    back = packed_and_back(builders.write_adapter(tmp_path / "a", tensors))
    assert np.array_equal(load_file(back / "adapter_model.safetensors")["base_model.model.attn.mask"], mask)


def test_pack_writes_nothing_that_does_not_unpack(tmp_path: Path) -> None:
    tensors = {n: v.astype(np.float16) for n, v in builders.tuned(builders.initial()).items()}
    name = builders.names()[1]
    tensors[name][:] = 60000
    adapter = builders.write_adapter(tmp_path / "a", tensors)
    with pytest.raises(NotFiniteError, match=rf"{name}.*F16.*bfloat16"):
        save_compressed(adapter, tmp_path / "a.expert", PackSettings(0.02))
    assert not (tmp_path / "a.expert").exists()


def test_an_infinite_factor_is_refused(tmp_path: Path) -> None:
    tensors = builders.tuned(builders.initial())
    tensors[builders.names()[1]][0, 0] = np.inf
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        save_compressed(builders.write_adapter(tmp_path / "a", tensors), tmp_path / "a.expert")


@pytest.mark.parametrize("kind", ["U16", "U32", "U64", "F8_E4M3", "F8_E5M2", "C64", "I64", "BOOL"])
def test_every_type_of_safetensors_is_kept_as_its_own_bytes(tmp_path: Path, kind: str) -> None:
    adapter = builders.write_adapter(tmp_path / "a", builders.tuned(builders.initial()))
    width = {"U16": 2, "U32": 4, "U64": 8, "C64": 8, "I64": 8}.get(kind, 1)
    octets = bytes(i % 2 for i in range(6 * width))
    builders.append_tensor(adapter / "adapter_model.safetensors", "base_model.model.counter", kind, (2, 3), octets)
    back = packed_and_back(adapter)
    assert builders.raw_tensor(back / "adapter_model.safetensors", "base_model.model.counter") == (kind, [2, 3], octets)


def test_a_type_whose_values_share_bytes_is_refused_as_what_it_is(tmp_path: Path) -> None:
    adapter = builders.write_adapter(tmp_path / "a", builders.tuned(builders.initial()))
    builders.append_tensor(adapter / "adapter_model.safetensors", "base_model.model.x", "F4", (2, 4), bytes(4))
    with pytest.raises(InputError, match="F4, which is not supported"):
        read_source(adapter)


def test_a_sharded_adapter_is_packed_whole(tmp_path: Path) -> None:
    tensors = builders.tuned(builders.initial(layers=3))
    whole = builders.write_adapter(tmp_path / "whole", tensors)
    split = tmp_path / "split"
    split.mkdir()
    (split / "adapter_config.json").write_bytes((whole / "adapter_config.json").read_bytes())
    where = {n: f"adapter_model-0000{1 + i % 2}-of-00002.safetensors" for i, n in enumerate(tensors)}
    for shard in sorted(set(where.values())):
        save_file({n: v for n, v in tensors.items() if where[n] == shard}, split / shard, {"format": "pt"})
    (split / "adapter_model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert notes_of(read_source(split)) == []
    files = [tmp_path / "whole.expert", tmp_path / "split.expert"]
    for folder, file in zip((whole, split), files, strict=True):
        save_compressed(folder, file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_failed_unpack_leaves_no_folder(adapter: Path, untrained: Path, tmp_path: Path) -> None:
    save_compressed(adapter, tmp_path / "a.expert", PackSettings(0.05, init=str(untrained)))
    with pytest.raises(InputError, match="--init DIR"):
        unpack(tmp_path / "a.expert", tmp_path / "deep" / "back")
    assert not (tmp_path / "deep").exists()


LONE = "base_model.model.layers.0.q_proj.lora"


@pytest.mark.parametrize(
    ("spoil", "fields", "words"),
    [
        (lambda t: t.pop(f"{LONE}_B.weight"), {}, "is there without"),
        (lambda t: t.pop(f"{LONE}_A.weight"), {}, "is there without"),
        (lambda t: t.update({f"{LONE}_B.weight": np.ones((64, 3), np.float32)}), {}, "factors of different ranks"),
        (lambda t: t.update({f"{LONE}_A.a.b.weight": np.ones((4, 64), np.float32)}), {}, "names that PEFT does not load"),
        (lambda t: None, {"r": 16}, "has rank 4, the configuration says 16"),
        (lambda t: None, {"rank_pattern": {"q_proj": 2}}, "has rank 4, the configuration says 2"),
    ],
)
def test_factors_that_peft_drops_or_refuses_are_said(
    tmp_path: Path, spoil: object, fields: dict[str, object], words: str
) -> None:
    tensors = builders.tuned(builders.initial())
    spoil(tensors)  # type: ignore[operator]  # parametrized
    notes = save_compressed(builders.write_adapter(tmp_path / "a", tensors, **fields), tmp_path / "a.expert").notes
    assert [note for note in notes if note.startswith("warning: ") and words in note]


def test_every_module_without_a_partner_is_counted(tmp_path: Path) -> None:
    tensors = {n: t for n, t in builders.tuned(builders.initial()).items() if "lora_A" in n}
    [note] = [n for n in notes_of(read_source(builders.write_adapter(tmp_path / "a", tensors))) if "without" in n]
    assert "2 modules" in note
