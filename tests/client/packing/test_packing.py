"""Packing and unpacking: what comes back, by which rule each tensor is kept, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compeft_client.checkpoints.initial_values import Start, read_start
from compeft_client.checkpoints.safetensors_file import Stored
from compeft_client.checkpoints.source import Source
from compeft_client.packing.auto_scale import FACTORS, auto_compression, auto_factor
from compeft_client.packing.pack import PackSettings, load_compressed, save_compressed, unpack
from compeft_client.packing.tensor_rules import treatment_of
from compeft_core import Compression, compress, densify, flatten, layout_of, seeded_state, unflatten
from compeft_core.errors import FormatError, InputError, LimitError, NotFiniteError
from compeft_proto.errors import WrongBaseError
from compeft_proto.expert_manifest import ADAPTER, HEAD, MODEL
from tests.client import builders

UNKNOWN = Start()
LORA = {"peft_type": "LORA", "init_lora_weights": True}


def treat(
    name: str, shape: tuple[int, ...], file: str = ADAPTER, dtype: str = "F32", start: Start = UNKNOWN, **fields: object
) -> str:
    return treatment_of(Source(Path(), {}, b"", fields or LORA), start, file, Stored(name, dtype, shape, Path(), 0))


def packed(directory: Path, file: Path, **settings: object) -> Path:
    """As ternary changes: tests/client/packing/test_products.py has the products."""
    save_compressed(directory, file, PackSettings(**{"density": 0.05, "codec": "rice"} | settings))  # type: ignore[arg-type]
    return file


def test_names_types_shapes_metadata_and_configuration_come_back(adapter: Path, untrained: Path, tmp_path: Path) -> None:
    file = packed(adapter, tmp_path / "a.expert", init=str(untrained))
    unpack(file, tmp_path / "back", init=str(untrained))
    before, after = load_file(adapter / ADAPTER), load_file(tmp_path / "back" / ADAPTER)
    assert {n: (v.shape, v.dtype) for n, v in after.items()} == {n: (v.shape, v.dtype) for n, v in before.items()}
    assert (tmp_path / "back/adapter_config.json").read_bytes() == (adapter / "adapter_config.json").read_bytes()
    assert b'{"__metadata__":{"format":"pt"}' in (tmp_path / "back" / ADAPTER).read_bytes()


def test_a_known_start_is_subtracted_and_added_again_exactly_as_core_compresses(
    adapter: Path, untrained: Path, tmp_path: Path
) -> None:
    start, end = load_file(untrained / ADAPTER), load_file(adapter / ADAPTER)
    layout = layout_of({n: v.shape for n, v in end.items()})
    change = flatten(layout, end) - flatten(layout, start)
    expected = unflatten(layout, flatten(layout, start) + densify(compress(layout, change, auto_compression(0.1))))
    file = packed(adapter, tmp_path / "a.expert", init=str(untrained), density=0.1)
    found = load_compressed(file, init=str(untrained)).tensors[ADAPTER]
    for name in end:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_seed_stands_for_the_directory_it_would_make(tmp_path: Path) -> None:
    start = {}
    for name, value in builders.initial().items():
        layout = layout_of({name: value.shape})
        start[name] = seeded_state(layout, 7, [builders.WIDTH**-0.5 if "lora_A" in name else 0.0]).reshape(value.shape)
    untrained = builders.write_adapter(tmp_path / "u", start)
    adapter = builders.write_adapter(tmp_path / "a", builders.tuned(start))
    by_seed = packed(adapter, tmp_path / "seed.expert", init="seed:7")
    by_directory = packed(adapter, tmp_path / "dir.expert", init=str(untrained))
    one, other = load_compressed(by_seed), load_compressed(by_directory, init=str(untrained))
    for name, value in one.tensors[ADAPTER].items():
        np.testing.assert_array_equal(value, other.tensors[ADAPTER][name])


def test_without_a_start_a_stays_whole_enough_and_b_is_compressed(adapter: Path, tmp_path: Path) -> None:
    found = load_compressed(packed(adapter, tmp_path / "a.expert")).tensors[ADAPTER]
    for name, value in load_file(adapter / ADAPTER).items():
        cosine = float(np.sum(value * found[name]) / np.linalg.norm(value) / np.linalg.norm(found[name]))
        assert np.count_nonzero(found[name]) / value.size > (0.6 if "lora_A" in name else 0.02)
        assert cosine > (0.9 if "lora_A" in name else 0.2)


def test_the_same_expert_makes_the_same_file(adapter: Path, tmp_path: Path) -> None:
    assert packed(adapter, tmp_path / "1").read_bytes() == packed(adapter, tmp_path / "2").read_bytes()


def test_what_each_kind_of_tensor_becomes_without_a_start() -> None:
    assert treat("m.q_proj.lora_B.weight", (64, 4)) == "ternary"
    assert treat("m.q_proj.lora_A.weight", (4, 64)) == "coarse"
    assert treat("m.q_proj.lora_A.weight", (1, 64)) == "coarse"
    assert treat("m.embed.lora_embedding_A", (4, 999)) == "ternary"
    assert treat("m.embed.lora_embedding_B", (64, 4)) == "coarse"
    assert treat("m.q_proj.lora_magnitude_vector", (4096,)) == "exact"
    assert treat("m.norm.weight", (4096,)) == "exact"
    assert treat("m.k_proj.ia3_l", (4096, 1), peft_type="IA3") == "exact"
    assert treat("m.classifier.weight", (77, 384)) == "dense"
    assert treat("m.classifier.bias", (77,)) == "exact"
    assert treat("m.embed_tokens.weight", (32000, 64)) == "dense"
    assert treat("weight", (77, 384), HEAD) == "dense"
    assert treat("m.step", (64, 64), dtype="I64") == "exact"
    assert treat("m.q_proj.lora_A.weight", (4, 64), peft_type="LORA", init_lora_weights="pissa") == "dense"
    assert treat("m.q_proj.lora_B.weight", (64, 4), peft_type="LORA", init_lora_weights=False) == "dense"
    assert treat("m.q.hada_w1_a", (64, 64), peft_type="LOHA") == "dense"
    assert treat("m.cls.weight", (64, 64), peft_type="LOHA", modules_to_save=["cls"]) == "dense"


def test_what_a_known_start_changes(adapter: Path) -> None:
    start = read_start(str(adapter))
    assert treat(builders.names()[0], (4, 64), start=start) == "ternary"
    assert treat(builders.names()[0], (8, 64), start=start) == "coarse"
    assert treat("m.q_proj.lora_A.weight", (4, 64), start=Start(seed=1)) == "ternary"


def test_of_a_full_checkpoint_matrices_are_ternary_and_the_rest_dense_differences(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shapes = {"layer.weight": (64, 64), "layer.bias": (64,), "classifier.weight": (5, 64), "embed.weight": (300, 64)}
    base = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    end = {n: (v + 0.01 * random.standard_normal(v.shape)).astype(np.float32) for n, v in base.items()}
    a, b = builders.write_model(tmp_path / "base", base), builders.write_model(tmp_path / "tuned", end)
    file = packed(b, tmp_path / "f.expert", init=str(a))
    unpack(file, tmp_path / "back", init=str(a / MODEL))
    back = load_file(tmp_path / "back" / MODEL)
    np.testing.assert_allclose(back["layer.bias"], end["layer.bias"], atol=1e-4)
    np.testing.assert_allclose(back["classifier.weight"], end["classifier.weight"], atol=2e-4)
    assert 0 < np.count_nonzero(back["embed.weight"] != base["embed.weight"]) < 0.1 * back["embed.weight"].size
    assert (tmp_path / "back/config.json").read_bytes() == (b / "config.json").read_bytes()
    with pytest.raises(InputError, match="--init BASE"):
        packed(b, tmp_path / "g.expert")


def test_a_head_beside_the_adapter_travels_with_its_metadata(adapter: Path, tmp_path: Path) -> None:
    save_file({"weight": np.ones((3, 64), np.float32)}, adapter / HEAD, metadata={"labels": '["a"]'})
    unpack(packed(adapter, tmp_path / "a.expert"), tmp_path / "back")
    np.testing.assert_array_equal(load_file(tmp_path / "back" / HEAD)["weight"], np.ones((3, 64)))
    assert b'"labels"' in (tmp_path / "back" / HEAD).read_bytes()


def test_tensors_that_are_not_floats_come_back_to_the_byte(adapter: Path, tmp_path: Path) -> None:
    odd = load_file(adapter / ADAPTER) | {
        "steps": np.array(7, np.int64),
        "mask": np.array([True, False]),
        "half": np.float16([1.5]),
    }
    builders.write_adapter(adapter, odd)
    file = packed(adapter, tmp_path / "a.expert")
    unpack(file, tmp_path / "back")
    back = load_file(tmp_path / "back" / ADAPTER)
    assert back["steps"] == 7
    assert back["mask"].tolist() == [True, False]
    assert back["half"].dtype == np.float16
    assert load_compressed(file).tensors[ADAPTER]["mask"].tolist() == [True, False]


def test_a_wrong_start_is_refused_when_packing_and_when_unpacking(adapter: Path, untrained: Path, tmp_path: Path) -> None:
    other = builders.write_adapter(tmp_path / "other", builders.initial(seed=5))
    for wrong in (str(other), "seed:3"):
        with pytest.raises(InputError, match=r"--init is not where .* started"):
            packed(adapter, tmp_path / "a.expert", init=wrong)
    file = packed(adapter, tmp_path / "a.expert", init=str(untrained))
    with pytest.raises(WrongBaseError, match=r"--init is not what .* was packed against: it has state"):
        unpack(file, tmp_path / "back", init=str(other))
    with pytest.raises(InputError, match="--init DIR"):
        unpack(file, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_start_that_says_nothing_of_the_expert_is_refused(adapter: Path, tmp_path: Path) -> None:
    stranger = builders.write_adapter(tmp_path / "stranger", {"x": np.ones((64, 64), np.float32)})
    ia3 = builders.write_adapter(tmp_path / "ia3", {"m.ia3_l": np.ones((64, 1), np.float32)}, peft_type="IA3")
    for directory, init in ((adapter, str(stranger)), (ia3, "seed:1")):
        with pytest.raises(InputError, match="no tensor whose start --init"):
            packed(directory, tmp_path / "x.expert", init=init)


@pytest.mark.parametrize("text", ["seed:", "seed:-1", "seed:x", "seed:99999999999999999999", "seed:\u0663"])
def test_a_seed_that_is_none_is_refused(adapter: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="seed"):
        packed(adapter, tmp_path / "a.expert", init=text)


def test_nothing_is_overwritten_unless_told(adapter: Path, tmp_path: Path) -> None:
    file = packed(adapter, tmp_path / "a.expert")
    with pytest.raises(InputError, match="--force"):
        packed(adapter, file)
    with pytest.raises(InputError, match="--force"):
        unpack(file, adapter)
    save_compressed(adapter, file, force=True)
    unpack(file, adapter, force=True)


def test_an_interrupted_pack_or_unpack_leaves_nothing(adapter: Path, tmp_path: Path) -> None:
    def stop(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_compressed(adapter, tmp_path / "a.expert", progress=stop)
    file = packed(adapter, tmp_path / "b.expert")
    with pytest.raises(KeyboardInterrupt):
        unpack(file, tmp_path / "back", progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "b.expert"]
    assert not (tmp_path / "back").exists()


def test_a_file_that_unpacks_to_more_than_allowed_is_refused_before_anything_is_made(adapter: Path, tmp_path: Path) -> None:
    file = packed(adapter, tmp_path / "a.expert")
    with pytest.raises(LimitError, match=r"1,024 parameters, the cap is 1,000: --max-parameters"):
        unpack(file, tmp_path / "back", max_parameters=1000)
    assert not (tmp_path / "back").exists()


def test_what_cannot_be_packed_says_why(tmp_path: Path, adapter: Path) -> None:
    pickle = tmp_path / "pickle"
    pickle.mkdir()
    (pickle / "adapter_model.bin").touch()
    nested = builders.write_adapter(tmp_path / "nested" / "french", builders.initial()).parent
    spoilt = builders.write_adapter(tmp_path / "spoilt", {builders.names()[1]: np.full((64, 4), np.nan, np.float32)})
    empty = builders.write_adapter(tmp_path / "empty", {})
    bare = tmp_path / "bare"
    bare.mkdir()
    for path, error, words in [
        (tmp_path / "none", InputError, "does not exist"),
        (pickle, InputError, "pickle"),
        (nested, InputError, "french"),
        (bare, InputError, "neither"),
        (spoilt, NotFiniteError, "NaN"),
        (empty, InputError, "no tensors"),
    ]:
        with pytest.raises(error, match=words):
            packed(path, tmp_path / "x.expert")
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(FormatError, match="list"):
        packed(adapter, tmp_path / "x.expert")


@pytest.mark.parametrize(
    ("density", "factor"), [(0.001, 2), (0.03, 2), (0.05, 1.8), (0.1, 1.47), (0.2, 1.25), (0.5, 1.12), (1, 1.12)]
)
def test_the_automatic_factor_is_that_of_the_table(density: float, factor: float) -> None:
    assert auto_factor(density) == pytest.approx(factor)


def test_the_automatic_factor_never_rises_with_density() -> None:
    found = [auto_factor(d) for d in np.geomspace(0.001, 1, 200)]
    assert found == sorted(found, reverse=True)
    assert {factor for _, factor in FACTORS} == {2.0, 1.8, 1.47, 1.25, 1.12}


def test_a_rule_and_a_factor_of_ones_own_replace_the_automatic_ones() -> None:
    assert PackSettings().compression == Compression(0.05, "norm", 1.8)
    assert PackSettings(factor=3.0).compression == Compression(0.05, "norm", 3.0)
    assert PackSettings(scale="alpha_sigma", factor=5.0).compression == Compression(0.05, "alpha_sigma", 5.0)
    assert PackSettings(scale="mean_magnitude").compression == Compression(0.05, "mean_magnitude", 1.0)


def test_a_codec_that_nobody_knows_is_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="zip"):
        packed(adapter, tmp_path / "x.expert", codec="zip")


def test_the_configuration_may_name_any_base_model(adapter: Path, tmp_path: Path) -> None:
    builders.write_adapter(adapter, load_file(adapter / ADAPTER), base_model_name_or_path="x\n\ud800")
    unpack(packed(adapter, tmp_path / "x.expert"), tmp_path / "back")
    assert json.loads((tmp_path / "back/adapter_config.json").read_bytes())["base_model_name_or_path"] == "x\n\ud800"


def test_both_codecs_carry_the_same_values(adapter: Path, untrained: Path, tmp_path: Path) -> None:
    files = [packed(adapter, tmp_path / codec, codec=codec, init=str(untrained)) for codec in ("rice", "context")]
    one, other = (load_compressed(file, init=str(untrained)).tensors[ADAPTER] for file in files)
    assert all(np.array_equal(one[name], other[name]) for name in one)
