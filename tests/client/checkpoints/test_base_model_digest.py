"""The weights digest: the same tensors, the same digest, however they are stored; any other weight, another one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from compeft_client.checkpoints.base_model_digest import digest_of, model_weights_digest, weights_digest
from compeft_client.cli.main import run
from compeft_core.errors import InputError


class Tied(torch.nn.Module):
    """An embedding, a head tied to it, a buffer, and a matrix in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = torch.nn.Parameter(torch.randn(5, 3, generator=generator))
        self.again = self.embed
        self.narrow = torch.nn.Parameter(torch.randn(4, 2, generator=generator).bfloat16())
        self.register_buffer("steps", torch.arange(7))


def saved(folder: Path) -> Path:
    model = Tied()
    tensors = {"embed": model.embed.detach(), "narrow": model.narrow.detach(), "steps": model.get_buffer("steps")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_in_memory_has_the_digest_of_its_file(tmp_path: Path) -> None:
    assert model_weights_digest(Tied()) == weights_digest(saved(tmp_path))
    assert weights_digest(tmp_path / "model.safetensors") == weights_digest(tmp_path)


def test_shards_have_the_digest_of_the_whole(tmp_path: Path) -> None:
    whole = weights_digest(saved(tmp_path))
    shards, model = tmp_path / "shards", Tied()
    shards.mkdir()
    save_file({"steps": model.get_buffer("steps"), "embed": model.embed.detach()}, shards / "b.safetensors")
    save_file({"narrow": model.narrow.detach()}, shards / "a.safetensors")
    places = {"embed": "b.safetensors", "narrow": "a.safetensors", "steps": "b.safetensors"}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert weights_digest(shards) == whole


def test_the_digest_is_that_of_the_documentation(tmp_path: Path) -> None:
    save_arrays({"é": np.array([[1.0, -2.0]], np.float32), "a": np.array([3], np.uint8)}, tmp_path / "w.safetensors")
    assert weights_digest(tmp_path / "w.safetensors").hex() == KNOWN
    assert digest_of([("é", "F32", (1, 2), [b"\0\0\x80\x3f", b"\0\0\0\xc0"]), ("a", "U8", (1,), [b"\3"])]).hex() == KNOWN


KNOWN = "5243fc8c98e2073e7b2b9403a849c8e93040fbf6d164c621987601b9f6fccd4a"  # by hand from docs/format.md, section 9


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("w", np.array([1.0, 2.5], np.float32)),
        ("w", np.array([[1.0], [2.0]], np.float32)),
        ("w", np.array([1.0, 2.0], np.float64)),
        ("v", np.array([1.0, 2.0], np.float32)),
    ],
)
def test_another_value_shape_type_or_name_is_another_digest(tmp_path: Path, name: str, values: np.ndarray) -> None:
    save_arrays({"w": np.array([1.0, 2.0], np.float32)}, tmp_path / "one.safetensors")
    save_arrays({name: values}, tmp_path / "other.safetensors")
    assert weights_digest(tmp_path / "one.safetensors") != weights_digest(tmp_path / "other.safetensors")


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    digests = set()
    for size in (1, 2, 1):
        save_arrays({"w": np.zeros(size, np.float32)}, file)
        digests.add(weights_digest(file))
    assert len(digests) == 2


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["weights-digest", str(saved(tmp_path)), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights_digest"] == weights_digest(tmp_path).hex()
    assert run(["weights-digest", str(tmp_path / "none")]) == 3


def test_what_has_no_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no weights at .*model\.safetensors\.index\.json"):
        weights_digest(tmp_path)
    model = torch.nn.Module()
    model.register_buffer("z", torch.zeros(1, dtype=torch.complex64))
    with pytest.raises(InputError, match=r"'z' is torch\.complex64"):
        model_weights_digest(model)
