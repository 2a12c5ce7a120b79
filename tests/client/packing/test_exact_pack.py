"""`pack --exact`: a checkpoint comes back to the bit from the one before and a small file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compeft_client.cli.main import run
from compeft_client.packing import exact_codec
from compeft_client.packing.expert_file import open_expert
from compeft_client.packing.pack import PackSettings, save_compressed
from compeft_client.packing.unpack import unpack
from compeft_core import layout_of
from compeft_core.errors import FormatError, InputError
from compeft_proto.errors import WrongBaseError
from compeft_proto.expert_file import check_payload
from compeft_proto.expert_manifest import FilePart

Tensors = dict[str, torch.Tensor]


def weights(seed: int = 0) -> Tensors:
    random = torch.Generator().manual_seed(seed)
    shapes = {"layers.0.w": (64, 96), "layers.1.w": (96, 64), "norm.weight": (64,), "empty": (0, 3)}
    found = {name: (0.02 * torch.randn(shape, generator=random)).bfloat16() for name, shape in shapes.items()}
    found["master"] = torch.randn(40, 3, generator=random)
    found["half"] = torch.randn(7, generator=random).half()
    found["steps"] = torch.arange(5)
    return found


def stepped(before: Tensors, size: float) -> Tensors:
    """One step further: floats move by about `size`, which changes few of them; NaN and infinity as a broken run leaves them."""
    random = torch.Generator().manual_seed(9)
    after = {}
    for name, tensor in before.items():
        sign = torch.randint(0, 2, tensor.shape, generator=random) * 2 - 1
        after[name] = (tensor.float() + size * sign).to(tensor.dtype) if tensor.is_floating_point() else tensor + 1
    after["half"][:3] = torch.tensor([float("nan"), float("inf"), -0.0])
    return after


def checkpoint(folder: Path, tensors: Tensors, shards: int = 1) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "_name_or_path": "org/base"}')
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    index = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: array for n, (name, array) in enumerate(sorted(tensors.items())) if n % shards == i}
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def same_bits(folder: Path, tensors: Tensors) -> None:
    found = load_file(folder / "model.safetensors")
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        assert bytes(found[name].view(torch.uint8).flatten().tolist()) == bytes(array.view(torch.uint8).flatten().tolist()), name


@pytest.mark.parametrize("shards", [1, 3])
def test_every_bit_comes_back_from_the_checkpoint_before(tmp_path: Path, shards: int) -> None:
    before, after = weights(), stepped(weights(), 1e-5)
    old, new = checkpoint(tmp_path / "old", before, shards), checkpoint(tmp_path / "new", after)
    packed = save_compressed(new, tmp_path / "d.expert", PackSettings(init=str(old), exact=True))
    unpack(tmp_path / "d.expert", tmp_path / "out", init=str(old))
    same_bits(tmp_path / "out", after)
    assert packed.total_bytes < packed.stored_bytes / 4


def test_parts_are_cut_where_they_would_be_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_codec, "PART_WORDS", 6200)
    old, new = checkpoint(tmp_path / "old", weights()), checkpoint(tmp_path / "new", stepped(weights(), 1e-5))
    save_compressed(new, tmp_path / "d.expert", PackSettings(init=str(old), exact=True))
    deltas = [part for part in open_expert(tmp_path / "d.expert").manifest.parts if part.delta]
    assert len(deltas) >= 3
    assert all(part.layout.size <= 6200 for part in deltas)
    unpack(tmp_path / "d.expert", tmp_path / "out", init=str(old))
    same_bits(tmp_path / "out", stepped(weights(), 1e-5))


def test_another_start_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    old, new = checkpoint(tmp_path / "old", weights()), checkpoint(tmp_path / "new", stepped(weights(), 1e-5))
    save_compressed(new, tmp_path / "d.expert", PackSettings(init=str(old), exact=True))
    with pytest.raises(WrongBaseError, match="its words have SHA-256"):
        unpack(tmp_path / "d.expert", tmp_path / "out", init=str(new))
    with pytest.raises(InputError, match="give the checkpoint that it was taken against"):
        unpack(tmp_path / "d.expert", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_the_start_lacks_travels_whole(tmp_path: Path) -> None:
    before, after = weights(), stepped(weights(), 1e-5)
    after["layers.2.w"] = after["layers.1.w"].T.contiguous()
    del before["norm.weight"]
    old, new = checkpoint(tmp_path / "old", before), checkpoint(tmp_path / "new", after)
    save_compressed(new, tmp_path / "d.expert", PackSettings(init=str(old), exact=True))
    unpack(tmp_path / "d.expert", tmp_path / "out", init=str(old))
    same_bits(tmp_path / "out", after)


def test_the_commands_pack_and_unpack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "old", weights())
    checkpoint(tmp_path / "new", stepped(weights(), 1e-5))
    assert run(["pack", "new", "--exact", "--init", "old"]) == 0
    assert "kept every bit" in capsys.readouterr().out
    assert run(["inspect", "new.expert"]) == 0
    assert "exact delta" in capsys.readouterr().out
    assert run(["unpack", "new.expert", "-o", "out", "--init", "old"]) == 0
    same_bits(tmp_path / "out", stepped(weights(), 1e-5))
    capsys.readouterr()
    for options, code, words in (
        (["--exact"], 3, "give it, --init DIR"),
        (["--exact", "--init", "seed:1"], 3, "give it, --init DIR"),
        (["--exact", "--init", "old", "--quality", "0.5"], 3, "--exact keeps every bit"),
    ):
        assert run(["pack", "new", *options, "--force"]) == code
        assert words in capsys.readouterr().err


def test_a_damaged_delta_is_found_without_the_checkpoint_before(tmp_path: Path) -> None:
    part = FilePart(
        "model.safetensors", layout_of({"w": (3,)}, ["w"]), ("BF16",), 3, bytes(32), None, None, bytes(32), delta=True
    )
    with pytest.raises(FormatError, match="exact delta"):
        check_payload(part, b"\x01\x00\x00")
    check_payload(part, b"\x00\x00\x00\x00")
