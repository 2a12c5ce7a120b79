"""LoRA coded by its products: any adapter without a start, back with its names, types and shapes; budgets kept to the byte."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from compeft_client.checkpoints.lora_modules import factors_of, modules_of
from compeft_client.merging.merge import MergeRequest, merge_experts
from compeft_client.packing.diff import diff
from compeft_client.packing.expert_file import open_expert, read_payload_of
from compeft_client.packing.pack import LOW_QUALITY, PackSettings, check_payloads, save_compressed, unpack
from compeft_client.packing.product_codec import quantise
from compeft_core.errors import FormatError, InputError, LimitError
from compeft_proto.quantised_part import read_entries, values_of, write_entries
from tests.client import builders

Tensors = dict[str, np.ndarray]
ADAPTER = "adapter_model.safetensors"
SMOL = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}


def low_rank(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    """Factors whose products have falling singular values, as those of trained experts have."""
    random = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape)
        if "lora_B" in name or "embedding_B" in name:
            rank = np.prod(shape[1:])
            values *= (0.6 ** np.arange(rank)).reshape(1, -1, *([1] * (len(shape) - 2)))
        made[name] = (0.05 * values).astype(np.float32)
    return made


def linear(rank: int = 8, layers: int = 4, width: int = 96) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        for module in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{i}.self_attn.{module}"
            found |= {f"{name}.lora_A.weight": (rank, width), f"{name}.lora_B.weight": (width, rank)}
    return found


def there_and_back(folder: Path, settings: PackSettings = PackSettings()) -> tuple[Tensors, int]:  # noqa: B008  # frozen
    size = save_compressed(folder, folder.with_suffix(".expert"), settings, force=True).total_bytes
    check_payloads(open_expert(folder.with_suffix(".expert")))
    back = folder.with_name("back")
    unpack(folder.with_suffix(".expert"), back, force=True)
    assert (back / "adapter_config.json").read_bytes() == (folder / "adapter_config.json").read_bytes()
    return load_file(back / ADAPTER), size


def products(tensors: Mapping[str, np.ndarray], fields: Mapping[str, object]) -> list[np.ndarray]:
    modules = modules_of({n: t.shape for n, t in tensors.items()}, fields)
    return [left @ right for m in modules for left, right in factors_of(m, tensors[m.a], tensors[m.b])]


def cosine(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    one, two = (np.concatenate([x.reshape(-1).astype(np.float64) for x in xs]) for xs in (a, b))
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


ADAPTERS: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, object]]] = {
    "linear": (linear(), {"r": 8, "lora_alpha": 16}),
    "rslora": (linear(), {"r": 8, "lora_alpha": 16, "use_rslora": True}),
    "patterns": (
        linear() | {"base_model.model.x.lora_A.weight": (3, 96), "base_model.model.x.lora_B.weight": (40, 3)},
        {"r": 8, "lora_alpha": 16, "rank_pattern": {"x": 3}, "alpha_pattern": {"x": 6}},
    ),
    "embedding": (
        {"base_model.model.embed.lora_embedding_A": (4, 300), "base_model.model.embed.lora_embedding_B": (64, 4)},
        {"r": 4, "lora_alpha": 4},
    ),
    "convolution": (
        {"base_model.model.c.lora_A.weight": (4, 12, 3, 3), "base_model.model.c.lora_B.weight": (60, 4, 1, 1)},
        {"r": 4, "lora_alpha": 4},
    ),
    "experts": (
        {"base_model.model.mlp.experts.lora_A.weight": (12, 80), "base_model.model.mlp.experts.lora_B.weight": (70, 12)},
        {"r": 3, "lora_alpha": 6, "target_parameters": ["experts.down_proj"]},
    ),
    "pissa": (linear(), {"r": 8, "lora_alpha": 16, "init_lora_weights": True, "lora_bias": False}),
}


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_any_adapter_comes_back_with_its_names_types_and_shapes_and_nearly_its_products(
    tmp_path: Path, name: str, dtype: str
) -> None:
    shapes, fields = ADAPTERS[name]
    tensors = {n: t.astype(np.float16 if dtype == "F16" else np.float32) for n, t in low_rank(shapes).items()}
    folder = builders.write_adapter(tmp_path / "a", tensors, **fields)
    back, _ = there_and_back(folder, PackSettings(quality=0.9))
    assert {n: (t.dtype, t.shape) for n, t in back.items()} == {n: (t.dtype, t.shape) for n, t in tensors.items()}
    assert cosine(products(tensors, fields), products(back, fields)) ** 2 > 0.88
    (part,) = [p for p in open_expert(folder.with_suffix(".expert")).manifest.parts if p.slices is not None]
    assert sum(m.slices for m in part.modules) == len(products(tensors, fields))


@pytest.mark.parametrize("budget", [400, 700, 1500, 10**6])
def test_a_budget_of_bytes_is_kept_and_used(tmp_path: Path, budget: int) -> None:
    folder = builders.write_adapter(tmp_path / "a", low_rank(linear()), r=8, lora_alpha=16)
    _, size = there_and_back(folder, PackSettings(budget_bytes=budget))
    assert size <= budget
    assert size > 0.85 * budget or budget == 10**6


@pytest.mark.parametrize("times", [10.0, 25.0])
def test_so_many_times_fewer_bytes_are_so_many(tmp_path: Path, times: float) -> None:
    tensors = low_rank(linear(layers=12, width=256))
    folder = builders.write_adapter(tmp_path / "a", tensors, r=8, lora_alpha=16)
    _, size = there_and_back(folder, PackSettings(times=times))
    bf16 = 2 * sum(t.size for t in tensors.values())
    assert 0.85 * bf16 / times < size <= bf16 / times


def test_more_quality_is_more_bytes_and_a_higher_cosine(tmp_path: Path) -> None:
    tensors, fields = low_rank(linear()), {"r": 8, "lora_alpha": 16}
    folder = builders.write_adapter(tmp_path / "a", tensors, **fields)
    found = [there_and_back(folder, PackSettings(quality=q)) for q in (0.3, 0.6, 0.9, 0.99)]
    sizes = [size for _, size in found]
    cosines = [cosine(products(tensors, fields), products(back, fields)) for back, _ in found]
    assert sizes == sorted(sizes)
    assert cosines == sorted(cosines)


def test_the_warning_begins_where_experts_of_the_evidence_no_longer_kept_their_gain() -> None:
    lines = (Path(__file__).parents[3] / "docs" / "benchmarks" / "product.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row.get("quality") is not None]
    spared = [row["kept"]["soft"] for row in rows if row["quality"] >= LOW_QUALITY]
    assert len(spared) >= 6
    assert min(spared) >= 0.85


def test_a_ruined_expert_is_said(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    flat = {n: random.standard_normal(s).astype(np.float32) for n, s in linear(layers=8, width=256).items()}
    folder = builders.write_adapter(tmp_path / "a", flat, r=8, lora_alpha=16)
    assert any(
        "warning: only 0.0" in note for note in save_compressed(folder, tmp_path / "a.expert", PackSettings(times=150)).notes
    )
    notes = save_compressed(folder, tmp_path / "a.expert", PackSettings(quality=0.5), force=True).notes
    assert not any("warning" in note for note in notes)


def test_magnitudes_of_dora_and_biases_are_kept_as_they_are(tmp_path: Path) -> None:
    tensors = low_rank(linear())
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"] = np.arange(1, 97, dtype=np.float32) / 7
    folder = builders.write_adapter(tmp_path / "a", tensors, r=8, lora_alpha=16, use_dora=True)
    back, _ = there_and_back(folder)
    name = next(n for n in tensors if "magnitude" in n)
    assert np.array_equal(back[name], tensors[name])


@pytest.mark.parametrize("option", [{"init_lora_weights": "pissa"}, {"use_bdlora": {"nblocks": 2}}, {"use_new_thing": 3}])
def test_an_adapter_that_is_not_known_to_be_a_product_goes_the_ternary_way(tmp_path: Path, option: dict[str, object]) -> None:
    folder = builders.write_adapter(tmp_path / "a", low_rank(linear()), r=8, lora_alpha=16, **option)
    save_compressed(folder, tmp_path / "a.expert")
    assert all(part.slices is None for part in open_expert(tmp_path / "a.expert").manifest.parts)


def smol(card: bytes = b"") -> tuple[Tensors, dict[str, object]]:
    tensors = {}
    for i in range(30):
        for module, (rows, columns) in SMOL.items():
            name = f"base_model.model.model.layers.{i}.{module}"
            tensors |= {
                f"{name}.lora_A.weight": np.ones((8, columns), np.float32),
                f"{name}.lora_B.weight": np.ones((rows, 8), np.float32),
            }
    return tensors, {"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM", "target_modules": [m.split(".")[1] for m in SMOL]}


def test_the_manifest_of_smollm2_on_all_linear_layers_takes_at_most_600_bytes(tmp_path: Path) -> None:
    tensors, fields = smol()
    peft = pytest.importorskip("peft")
    full = peft.LoraConfig(**fields).to_dict() | {"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    full = {k: sorted(v) if isinstance(v, set) else getattr(v, "value", v) for k, v in full.items()}
    folder = builders.write_adapter(tmp_path / "a", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(full, indent=2, sort_keys=True))
    save_compressed(folder, tmp_path / "a.expert", PackSettings(budget_bytes=5000))
    opened = open_expert(tmp_path / "a.expert")
    assert opened.manifest_bytes <= 600
    assert len(opened.manifest.parts[0].layout.tensors) == 420
    plain = builders.write_adapter(
        tmp_path / "b", tensors | {"base_model.model.a_name_that_no_model_has": np.ones(3, np.float32)}
    )
    assert opened.payload_start - 13 < 700, plain


@pytest.mark.parametrize(
    "extra",
    [
        {"base_model.model.random": np.random.default_rng(0).standard_normal((50, 50)).astype(np.float32)},
        {"base_model.model.index": np.random.default_rng(0).integers(0, 2**31, 5000).astype(np.int32)},
        {"base_model.model.counts": np.arange(4000, dtype=np.int64)},
        {"base_model.model.half": np.random.default_rng(0).standard_normal(3000).astype(np.float16)},
    ],
)
@pytest.mark.parametrize("kind", ["LORA", "UNILORA", "SHIRA", "IA3"])
@pytest.mark.parametrize("density", [None, 1.0])
def test_no_file_is_larger_than_its_input_and_200_bytes(tmp_path: Path, extra: Tensors, kind: str, density: float | None) -> None:
    folder = builders.write_adapter(tmp_path / "a", extra, peft_type=kind)
    size = save_compressed(folder, tmp_path / "a.expert", PackSettings(density)).total_bytes
    assert size <= sum(f.stat().st_size for f in folder.iterdir()) + 200


def test_a_head_takes_at_most_8_bits_an_entry_and_a_column_of_large_weights_spoils_no_other(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    head = random.standard_normal((77, 384)).astype(np.float32)
    head[:, :6] *= 300
    tensors = low_rank(linear()) | {"base_model.model.classifier.weight": head}
    folder = builders.write_adapter(tmp_path / "a", tensors, r=8, lora_alpha=16, modules_to_save=["classifier"])
    back, _ = there_and_back(folder)
    (part,) = [p for p in open_expert(folder.with_suffix(".expert")).manifest.parts if p.steps]
    assert part.payload_bytes <= head.size
    assert float(np.abs(back["base_model.model.classifier.weight"] - head).max()) <= 0.5001 / 40


@pytest.mark.parametrize("values", [[], [0], [127, -127], [128, -128, 3], [2**24 - 1, -(2**24) + 1] * 9, list(range(-300, 300))])
def test_integers_of_a_quantised_part_come_back(values: list[int]) -> None:
    entries = np.array(values, np.int32)
    assert np.array_equal(read_entries(write_entries(entries), entries.size), entries)


@pytest.mark.parametrize("size", [2, 4, 0])
def test_integers_for_another_number_of_parameters_are_refused(size: int) -> None:
    with pytest.raises((FormatError, LimitError)):
        read_entries(write_entries(np.array([1, 200, 3], np.int32)), size)


def test_a_zero_and_a_constant_tensor_are_quantised_without_loss_of_meaning() -> None:
    entries, step = quantise(np.zeros((40, 40), np.float32))
    assert step == 0
    assert not entries.any()
    entries, step = quantise(np.full((40, 40), 3, np.float32))
    assert entries * step == pytest.approx(3, rel=1e-4)


def test_the_cosine_of_two_experts_is_that_of_their_products(tmp_path: Path) -> None:
    fields: dict[str, object] = {"r": 8, "lora_alpha": 16}
    tensors = low_rank(linear())
    mixed = {n: np.linalg.qr(np.random.default_rng(3).standard_normal((8, 8)))[0].astype(np.float32) for n in ("m",)}["m"]
    turned = {n: mixed @ t if "lora_A" in n else t @ mixed.T for n, t in tensors.items()}
    a = builders.write_adapter(tmp_path / "a", tensors, **fields)
    b = builders.write_adapter(tmp_path / "b", turned, **fields)
    assert diff(a, b).total.cosine == pytest.approx(1, abs=1e-5)
    c = builders.write_adapter(
        tmp_path / "c", {n: t if "lora_A" in n else low_rank(linear(), 5)[n] for n, t in tensors.items()}, **fields
    )
    want = cosine(products(tensors, fields), products(load_file(c / ADAPTER), fields))
    assert diff(a, c).total.cosine == pytest.approx(want, abs=1e-5)
    save_compressed(a, tmp_path / "a.expert", PackSettings(quality=0.95))
    assert diff(a, tmp_path / "a.expert").total.cosine > 0.96


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (PackSettings(quality=1.5), "invalid --quality"),
        (PackSettings(times=0.5), "invalid --times"),
        (PackSettings(0.1, quality=0.5), "give one kind"),
        (PackSettings(quality=0.5, times=10), "--quality, --times and --budget"),
        (PackSettings(budget_bytes=100), "do not depend on how much is kept"),
    ],
)
def test_settings_that_say_nothing_useful_are_refused(tmp_path: Path, settings: PackSettings, words: str) -> None:
    folder = builders.write_adapter(tmp_path / "a", low_rank(linear()), r=8, lora_alpha=16)
    with pytest.raises(InputError, match=words):
        save_compressed(folder, tmp_path / "a.expert", settings)


def test_a_damaged_payload_of_products_is_refused(tmp_path: Path) -> None:
    folder = builders.write_adapter(tmp_path / "a", low_rank(linear()), r=8, lora_alpha=16)
    save_compressed(folder, tmp_path / "a.expert")
    opened = open_expert(tmp_path / "a.expert")
    payload = bytearray(read_payload_of(opened, 0))
    payload[len(payload) // 2] ^= 4
    data = (tmp_path / "a.expert").read_bytes()
    (tmp_path / "b.expert").write_bytes(data[: opened.payload_start] + bytes(payload))
    with pytest.raises(FormatError, match="damaged"):
        check_payloads(open_expert(tmp_path / "b.expert"))


def test_values_of_a_quantised_part_are_integers_times_steps() -> None:
    from compeft_core import layout_of

    layout = layout_of({"a": (2, 2), "b": (3,)}, ["a", "b"])
    payload = write_entries(np.array([1, -2, 3, 500, 7, 0, -1], np.int32))
    found = values_of(payload, layout, [0.5, 0.25])
    assert found.tolist() == [0.5, -1.0, 1.5, 250.0, 1.75, 0.0, -0.25]


@pytest.mark.parametrize(
    ("method", "weights", "shares"),
    [("average", (3, 1), (0.75, 0.25)), ("task_arithmetic", (1, -0.5), (1, -0.5)), ("core_average", (1, 1), (0.5, 0.5))],
)
@pytest.mark.parametrize("output", ["out", "out.expert"])
def test_files_of_products_are_merged_by_stacking(
    tmp_path: Path, method: str, weights: tuple[float, ...], shares: tuple[float, ...], output: str
) -> None:
    fields: dict[str, object] = {"r": 8, "lora_alpha": 16}
    files, want = [], [np.zeros((96, 96)) for _ in range(8)]
    for seed, share in enumerate(shares):
        tensors = low_rank(linear(), seed)
        folder = builders.write_adapter(tmp_path / str(seed), tensors, **fields)
        back, _ = there_and_back(folder, PackSettings(quality=0.95))
        want = [w + share * 2 * p for w, p in zip(want, products(back, fields), strict=True)]
        files.append(folder.with_suffix(".expert"))
    merge_experts(MergeRequest(files, method, weights, 1.0, {}, None, PackSettings()), tmp_path / output)
    folder = tmp_path / output
    if output.endswith(".expert"):
        unpack(folder, folder := tmp_path / "unpacked")
    config = json.loads((folder / "adapter_config.json").read_text())
    got = products(load_file(folder / ADAPTER), config)
    assert cosine(got, want) > (0.9 if output.endswith(".expert") else 0.99999)


@pytest.mark.parametrize("method", ["ties", "dare", "median"])
def test_methods_for_entries_refuse_products_and_say_what_to_use(tmp_path: Path, method: str) -> None:
    folder = builders.write_adapter(tmp_path / "a", low_rank(linear()), r=8, lora_alpha=16)
    save_compressed(folder, tmp_path / "a.expert")
    with pytest.raises(InputError, match=r"holds products.*core_average"):
        merge_experts(MergeRequest([tmp_path / "a.expert", folder], method, (), 1.0, {}, None, PackSettings()), tmp_path / "out")
