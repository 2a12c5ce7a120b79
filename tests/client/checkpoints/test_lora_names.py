"""LoRA files of kohya's and diffusers' names, packed and unpacked."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from compeft_client.checkpoints.lora_names import lora_names, stored_name
from compeft_client.checkpoints.source import read_source
from compeft_client.cli.main import run
from compeft_client.packing.diff import diff
from compeft_client.packing.expert_file import open_expert
from compeft_client.packing.pack import PackSettings, load_compressed, save_compressed, unpack
from compeft_client.packing.plan import product_modules
from compeft_core.errors import InputError
from compeft_proto.expert_manifest import ADAPTER

Arrays = dict[str, NDArray[np.generic]]
METADATA = {"ss_network_dim": "8", "ss_tag_frequency": "x" * 5000}
KOHYA = ("lora_unet_down_0_attn{}.lora_down.weight", "lora_unet_down_0_attn{}.lora_up.weight", "lora_unet_down_0_attn{}.alpha")
STYLES = {
    "kohya": KOHYA,
    "kohya's text encoder": tuple(name.replace("lora_unet", "lora_te") for name in KOHYA),
    "diffusers": ("unet.mid.{}.to_q.lora.down.weight", "unet.mid.{}.to_q.lora.up.weight", "unet.mid.{}.to_q.alpha"),
    "processors": (
        "unet.{}.processor.to_q_lora.down.weight",
        "unet.{}.processor.to_q_lora.up.weight",
        "unet.{}.processor.to_q.alpha",
    ),
    "text encoder": (
        "text_encoder.{}.q_proj.lora_linear_layer.down.weight",
        "text_encoder.{}.q_proj.lora_linear_layer.up.weight",
        "text_encoder.{}.q_proj.alpha",
    ),
    "without configuration": ("unet.{}.to_q.lora_A.weight", "unet.{}.to_q.lora_B.weight", "unet.{}.to_q.alpha"),
}


def lora(style: str, layers: int = 3, alpha: float = 4.0) -> Arrays:
    """Factors of rank 8 (the last a 3 x 3 convolution), and the alpha of each."""
    random, made = np.random.default_rng(0), dict[str, NDArray[np.generic]]()
    down, up, scale = STYLES[style]
    for i in range(layers):
        kernel, ones = ((3, 3), (1, 1)) if i == layers - 1 else ((), ())
        made[down.format(i)] = random.normal(0, 0.1, (8, 64, *kernel)).astype(np.float16)
        made[up.format(i)] = random.normal(0, 0.1, (96, 8, *ones)).astype(np.float16)
        made[scale.format(i)] = np.array(alpha * (i + 1), np.float16)
    return made


def product(tensors: Mapping[str, NDArray[np.generic]], style: str, layer: int) -> NDArray[np.float64]:
    down, up, _ = STYLES[style]
    a, b = (tensors[name.format(layer)].astype(np.float64) for name in (down, up))
    return b.reshape(96, 8) @ a.reshape(8, -1)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("where", ["file", "pytorch_lora_weights.safetensors", "adapter_model.safetensors", "style.safetensors"])
def test_a_lora_of_a_diffusion_model_packs_and_comes_back_by_its_own_names(tmp_path: Path, style: str, where: str) -> None:
    tensors, folder = lora(style), tmp_path / "lora"
    folder.mkdir()
    file = folder / ("one.safetensors" if where == "file" else where)
    save_file(tensors, file, METADATA)
    packed = save_compressed(file if where == "file" else folder, tmp_path / "a.expert", PackSettings(quality=0.999))
    assert [len(part.part.modules) for part in packed.parts if part.planned.is_product] == [3]
    unpack(tmp_path / "a.expert", tmp_path / "out")
    assert [child.name for child in (tmp_path / "out").iterdir()] == [ADAPTER]
    found = load_file(tmp_path / "out" / ADAPTER)
    assert {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in tensors.items()}
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors if name.endswith("alpha"))
    with safe_open(tmp_path / "out" / ADAPTER, "numpy") as opened:
        assert opened.metadata() == METADATA
    for layer in range(3):
        ours, theirs = product(found, style, layer), product(tensors, style, layer)
        assert np.sum(ours * theirs) > 0.98 * np.linalg.norm(ours) * np.linalg.norm(theirs)
    assert set(load_compressed(tmp_path / "a.expert").tensors[ADAPTER]) == set(tensors)
    again = read_source(tmp_path / "out")
    assert {m.name for m, _ in product_modules(again)} == {m.name for m, _ in product_modules(packed.source)}


def test_alpha_beside_the_factors_is_their_scaling(tmp_path: Path) -> None:
    for style in STYLES:
        save_file(lora(style, alpha=4.0), tmp_path / "a.safetensors")
        assert [scaling for _, scaling in product_modules(read_source(tmp_path / "a.safetensors"))] == [0.5, 1.0, 1.5], style


def test_diff_weighs_modules_by_the_alpha_beside_them(tmp_path: Path) -> None:
    save_file(lora("kohya"), tmp_path / "a.safetensors")
    save_compressed(tmp_path / "a.safetensors", tmp_path / "a.expert", PackSettings(quality=0.999))
    found = diff(tmp_path / "a.safetensors", tmp_path / "a.expert")
    assert found.total.cosine > 0.98
    first, last = (found.modules[f"lora_unet_down_0_attn{i}"].squares_a for i in (0, 2))
    raw = [float(np.sum(product(lora("kohya"), "kohya", i) ** 2)) for i in (0, 2)]
    assert last / first == pytest.approx(9 * raw[1] / raw[0], rel=1e-3)


def test_a_module_with_a_middle_factor_is_no_product_and_comes_back(tmp_path: Path) -> None:
    tensors = lora("kohya") | {"lora_unet_down_0_attn2.lora_mid.weight": np.ones((8, 8, 3, 3), np.float16)}
    save_file(tensors, tmp_path / "a.safetensors")
    packed = save_compressed(tmp_path / "a.safetensors", tmp_path / "a.expert", PackSettings(quality=0.9))
    assert [len(part.part.modules) for part in packed.parts if part.planned.is_product] == [2]
    found = load_compressed(tmp_path / "a.expert").tensors[ADAPTER]
    name = KOHYA[0].format(2)
    assert set(found) == set(tensors)
    assert np.allclose(found[name], tensors[name], atol=0.01)


REFUSED = {
    "LoHa": ({"lora_unet_a.hada_w1_a": (8, 64), "lora_unet_a.hada_w1_b": (64, 8)}, "another method than LoRA"),
    "LoKr": ({"lora_unet_a.lokr_w1": (8, 8), "lora_unet_a.lokr_w2": (64, 64)}, "another method than LoRA"),
    "PEFT without its folder": (
        {"base_model.model.a.lora_A.weight": (8, 64), "base_model.model.a.lora_B.weight": (64, 8)},
        "name the folder",
    ),
    "mixed": (
        {
            "lora_unet_a.lora_down.weight": (8, 64),
            "lora_unet_a.lora_up.weight": (64, 8),
            "unet.b.lora_A.weight": (8, 64),
            "unet.b.lora_B.weight": (64, 8),
        },
        "mixes",
    ),
    "ambiguous": ({"lora_unet_a_lora.lora_down.weight": (8, 64), "lora_unet_a_lora.lora_up.weight": (64, 8)}, "mixes"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, what: str) -> None:
    shapes, said = REFUSED[what]
    save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=said):
        read_source(tmp_path / "a.safetensors")


def test_an_ordinary_checkpoint_is_still_one(tmp_path: Path) -> None:
    names = ["model.layers.0.down.weight", "model.layers.0.up.weight", "explorative.weight"]
    assert lora_names(names, tmp_path) is None
    save_file({name: np.ones((4, 4), np.float32) for name in names}, tmp_path / "a.safetensors")
    assert not read_source(tmp_path / "a.safetensors").is_adapter


def test_every_name_that_is_read_is_written_again() -> None:
    for style, names in STYLES.items():
        found = lora_names([name.format(7) for name in names], Path(style))
        assert found is not None
        assert [stored_name(plain, found.style) for plain in found.plain.values()] == list(found.plain)


def test_merge_refuses_them_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(lora("kohya"), tmp_path / "a.safetensors")
    assert run(["pack", str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "a.expert")]) == 0
    assert open_expert(tmp_path / "a.expert").manifest.config == b""
    for path in ("a.safetensors", "a.expert"):
        assert run(["merge", str(tmp_path / path), str(tmp_path / "a.expert"), "-o", str(tmp_path / "m")]) == 3
        assert "merge takes PEFT adapters" in capsys.readouterr().err
