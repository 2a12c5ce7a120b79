"""The pool on a real PEFT model: exact values, exact base, room kept, threads kept apart."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import save_file

from compeft_client.models.adapter import adapter_arrays, load_adapter
from compeft_client.models.expert_pool import ExpertPool
from compeft_client.packing.expert_file import open_expert
from compeft_client.packing.pack import PackSettings, load_compressed, save_compressed
from compeft_core.errors import FormatError, InputError, LayoutMismatchError
from compeft_proto.errors import ConflictError, UnknownKeyError, WrongBaseError
from compeft_proto.keys import new_key
from tests.client.models.test_adapter import base, model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.tensor([[1, 2, 3, 4]])
NAMES = ("berlin", "paris", "tokyo")


def output(peft: PeftModel) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = peft(input_ids=IDS).last_hidden_state
    return result


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three experts of one start, as packed files, and `start` beside them."""
    folder = tmp_path_factory.mktemp("experts")
    tuned = model()
    tuned.save_pretrained(folder / "start", save_embedding_layers=False)
    start, made = adapter_arrays(tuned), {"start": folder / "start"}
    for seed, name in enumerate(NAMES):
        random = np.random.default_rng(seed)
        moved = {n: (a + 0.05 * random.standard_normal(a.shape)).astype(np.float32) for n, a in start.items()}
        load_adapter(tuned, moved)
        tuned.save_pretrained(folder / name, save_embedding_layers=False)
        save_file({"weight": np.full((2, 4), float(seed), np.float32)}, folder / name / "head.safetensors")
        made[name] = folder / f"{name}.expert"
        save_compressed(folder / name, made[name], PackSettings(0.2, init=str(folder / "start")))
    return made


def pool_of(peft: torch.nn.Module, files: dict[str, Path], **options: int) -> ExpertPool:
    pool = ExpertPool(peft, init=str(files["start"]), **options)
    for name in NAMES:
        pool.add(name, files[name])
    return pool


def unpacked(files: dict[str, Path], name: str) -> dict[str, np.ndarray]:
    return dict(load_compressed(files[name], init=str(files["start"])).tensors["adapter_model.safetensors"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_active_expert_is_what_unpacking_gives(files: dict[str, Path], dtype: torch.dtype) -> None:
    peft = model(dtype)
    with pool_of(peft, files) as pool:
        for name in (*NAMES, *reversed(NAMES)):
            pool.activate(name)
            found = adapter_arrays(peft)
            for tensor, values in unpacked(files, name).items():
                assert np.array_equal(found[tensor], torch.from_numpy(values).to(dtype).float().numpy()), (name, tensor)


def test_the_base_model_comes_back_bit_for_bit(files: dict[str, Path]) -> None:
    peft = model()
    with peft.disable_adapter():
        base = output(peft)
    with pool_of(peft, files) as pool:
        assert torch.equal(output(peft), base)
        with pool.using("berlin"):
            assert not torch.equal(output(peft), base)
        assert torch.equal(output(peft), base)
        assert pool.active == {}


def test_a_composition_is_the_start_and_the_weighted_changes(files: dict[str, Path]) -> None:
    peft = model()
    start = adapter_arrays(peft)
    with pool_of(peft, files) as pool:
        pool.activate({"berlin": 0.5, "paris": -0.25})
        found = adapter_arrays(peft)
    berlin, paris = unpacked(files, "berlin"), unpacked(files, "paris")
    for name, values in start.items():
        expected = values + 0.5 * (berlin[name] - values) - 0.25 * (paris[name] - values)
        assert np.allclose(found[name], expected, atol=1e-6)


def test_what_was_used_longest_ago_leaves_and_is_read_again(files: dict[str, Path]) -> None:
    with pool_of(model(), files) as pool:
        pool.activate("berlin")
        one = pool.held_bytes
    with pool_of(model(), files, capacity_bytes=2 * one + one // 2) as pool:
        for name in ("berlin", "paris", "berlin", "tokyo"):
            pool.activate(name)
        assert pool.resident == ["berlin", "tokyo"]
        assert pool.held_bytes <= 2 * one + one // 2
        pool.activate("paris")
        assert pool.resident == ["tokyo", "paris"]


def test_an_expert_larger_than_the_pool_still_works(files: dict[str, Path]) -> None:
    peft = model()
    with pool_of(peft, files, capacity_bytes=1) as pool:
        pool.activate("berlin")
        assert pool.resident == []
        tensor = next(iter(unpacked(files, "berlin")))
        assert np.array_equal(adapter_arrays(peft)[tensor], unpacked(files, "berlin")[tensor])


def test_prefetched_experts_are_in_memory_before_they_are_asked_for(files: dict[str, Path]) -> None:
    with pool_of(model(), files) as pool:
        for read in pool.prefetch(["tokyo", "berlin"]):
            read.result()
        assert pool.resident == ["tokyo", "berlin"]


def test_threads_do_not_see_each_others_expert(files: dict[str, Path]) -> None:
    peft, wrong = model(), []
    with pool_of(peft, files) as pool:
        expected = {}
        for name in NAMES:
            with pool.using(name):
                expected[name] = output(peft)

        def ask(name: str) -> None:
            for _ in range(20):
                with pool.using(name):
                    if not torch.equal(output(peft), expected[name]):
                        wrong.append(name)

        threads = [threading.Thread(target=ask, args=(name,)) for name in NAMES for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_head_is_handed_out_as_it_was(files: dict[str, Path]) -> None:
    with pool_of(model(), files) as pool:
        assert np.array_equal(pool.head("tokyo")["weight"], np.full((2, 4), 2.0, np.float32))


def test_an_expert_for_another_model_is_refused(files: dict[str, Path]) -> None:
    with ExpertPool(model(r=2), init=str(files["start"])) as pool, pytest.raises(LayoutMismatchError, match="the model has"):
        pool.add("berlin", files["berlin"])
    with ExpertPool(model(lora_alpha=16), init=str(files["start"])) as pool, pytest.raises(InputError, match="lora_alpha 8"):
        pool.add("berlin", files["berlin"])
    with ExpertPool(model(use_rslora=True), init=str(files["start"])) as pool, pytest.raises(InputError, match="use_rslora"):
        pool.add("berlin", files["berlin"])


def test_names_and_files_that_cannot_be_used_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pool_of(model(), files) as pool:
        with pytest.raises(InputError, match="no expert 'rome'"):
            pool.activate("rome")
        with pytest.raises(ConflictError, match="already: choose another name"):
            pool.add("berlin", files["paris"])
        pool.add("berlin", files["berlin"])
        with pytest.raises(InputError, match="deactivate"):
            pool.activate({})
    with ExpertPool(model()) as pool:
        pool.add("berlin", files["berlin"])
        with pytest.raises(InputError, match="--init"):
            pool.activate("berlin")
    with ExpertPool(model(), key=new_key().public) as pool, pytest.raises(UnknownKeyError):
        pool.add("berlin", files["berlin"])
    other = model()
    load_adapter(other, {n: a + 1 for n, a in adapter_arrays(other).items()})
    other.save_pretrained(tmp_path / "other", save_embedding_layers=False)
    with ExpertPool(model(), init=str(tmp_path / "other")) as pool:
        pool.add("berlin", files["berlin"])
        with pytest.raises(WrongBaseError):
            pool.activate("berlin")


def test_a_file_damaged_after_it_was_added_leaves_the_model_as_it_was(files: dict[str, Path], tmp_path: Path) -> None:
    peft, copy = model(), tmp_path / "copy.expert"
    copy.write_bytes(files["paris"].read_bytes())
    with pool_of(peft, files) as pool:
        pool.add("copy", copy)
        pool.activate("berlin")
        before = output(peft)
        with copy.open("r+b") as stream:
            stream.seek(open_expert(copy).payload_start)
            stream.write(b"\xff")
        with pytest.raises(FormatError, match="damaged"):
            pool.activate("copy")
        assert torch.equal(output(peft), before)
        assert pool.active == {"berlin": 1.0}


def test_a_base_model_becomes_one_with_an_adapter_by_its_first_expert(files: dict[str, Path]) -> None:
    peft, unwrapped = model().eval(), base().eval()
    with torch.inference_mode():
        before = unwrapped(input_ids=IDS).last_hidden_state
    with pool_of(unwrapped, files) as pool, pool_of(peft, files) as wrapped:
        for name in NAMES:
            with pool.using(name), wrapped.using(name), torch.inference_mode():
                assert torch.equal(unwrapped(input_ids=IDS).last_hidden_state, output(peft))
                assert not torch.equal(unwrapped(input_ids=IDS).last_hidden_state, before)
        with torch.inference_mode():
            assert torch.equal(unwrapped(input_ids=IDS).last_hidden_state, before)
