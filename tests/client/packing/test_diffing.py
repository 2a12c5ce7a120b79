"""Comparing experts: the measures by hand, and like compared with like only."""

from pathlib import Path

import numpy as np
import pytest

from compeft_client.packing.diff import alike, diff
from compeft_client.packing.pack import PackSettings, save_compressed
from compeft_core.errors import InputError
from compeft_proto.errors import WrongBaseError
from tests.client import builders


def test_the_measures_of_two_vectors_by_hand() -> None:
    found = alike(np.float32([3, 0, 0, -4, 1]), np.float32([3, 4, 0, 4, 0]))
    assert found.dot == 9 - 16
    assert found.cosine == pytest.approx(-7 / np.sqrt(26 * 41))
    assert found.norm_ratio == pytest.approx(np.sqrt(41 / 26))
    assert found.jaccard == 2 / 4
    assert found.sign_agreement == 1 / 2
    assert found.conflicts == 1


def test_nothing_is_like_nothing() -> None:
    found = alike(np.zeros(3, np.float32), np.zeros(3, np.float32))
    assert (found.cosine, found.norm_ratio, found.jaccard, found.sign_agreement, found.conflicts) == (0, 0, 0, 0, 0)


def test_an_expert_is_like_itself_and_like_its_file(adapter: Path, untrained: Path, tmp_path: Path) -> None:
    assert diff(adapter, adapter).total.cosine == pytest.approx(1)
    file = tmp_path / "a.expert"
    save_compressed(adapter, file, PackSettings(density=1.0, init=str(untrained)))
    found = diff(file, adapter, str(untrained))
    assert not found.left_out
    assert found.total.cosine > 0.7
    assert found.total.sign_agreement == 1


def test_only_tensors_of_one_start_are_compared(adapter: Path, untrained: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.expert"
    save_compressed(adapter, file, PackSettings(0.05, init=str(untrained)))
    found = diff(file, adapter)
    assert set(found.modules) == {"layers.0.q_proj", "layers.1.q_proj"}
    assert [name.rsplit(".", 2)[1] for name in found.left_out] == ["lora_A", "lora_A"]
    assert all("give --init" in reason for reason in found.left_out.values())
    other = builders.write_adapter(tmp_path / "other", builders.initial(seed=9))
    with pytest.raises(WrongBaseError):
        diff(file, adapter, str(other))


def test_two_files_from_one_start_need_nothing_more(untrained: Path, adapter: Path, tmp_path: Path) -> None:
    second = builders.write_adapter(tmp_path / "second", builders.tuned(builders.initial(), seed=2))
    for directory, name in ((adapter, "a"), (second, "b")):
        save_compressed(directory, tmp_path / name, PackSettings(0.05, init=str(untrained)))
    found = diff(tmp_path / "a", tmp_path / "b")
    assert not found.left_out
    assert abs(found.total.cosine) < 0.5


def test_experts_that_share_nothing_are_refused(adapter: Path, tmp_path: Path) -> None:
    stranger = builders.write_adapter(tmp_path / "s", {"x": np.ones((2, 2), np.float32)})
    with pytest.raises(InputError, match="share no comparable tensor"):
        diff(adapter, stranger)


def test_a_head_does_not_drown_the_adapter(adapter: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    other = builders.write_adapter(
        tmp_path / "o", {n: -v if "lora_B" in n else v for n, v in load_file(adapter / "adapter_model.safetensors").items()}
    )
    for folder in (adapter, other):
        save_file({"weight": np.full((50, 64), 9, np.float32)}, folder / "head.safetensors")
    assert diff(adapter, other).total.cosine == pytest.approx(-1)
