"""BatchPool: each row of a batch computes what it computes alone with its expert under PEFT."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from compeft_client.models.batch_pool import BatchPool
from compeft_client.packing.pack import PackSettings, save_compressed, unpack
from compeft_core.errors import InputError, LayoutMismatchError

TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]
IDS = torch.arange(60).reshape(5, 12) % 64
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def base(width: int = 32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(hidden_size=width, intermediate_size=48, **sizes)).eval()


def write(folder: Path, seed: int, settings: PackSettings = PackSettings(quality=0.8), **config: Any) -> Path:  # noqa: B008
    """A packed expert, and the directory it unpacks to beside it."""
    model = get_peft_model(base(), LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": TARGETS} | config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.save_pretrained(str(folder / f"{seed}"), save_embedding_layers=False)
    save_compressed(folder / f"{seed}", folder / f"{seed}.expert", settings)
    unpack(folder / f"{seed}.expert", folder / f"{seed}-back")
    return folder / f"{seed}.expert"


@torch.inference_mode()
def logits(model: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids).logits
    return found


def alone(folder: Path, names: Sequence[str | None], ids: torch.Tensor = IDS) -> torch.Tensor:
    """Each row by itself, with PEFT and the unpacked adapter."""
    rows = []
    for number, name in enumerate(names):
        model: torch.nn.Module = base() if name is None else PeftModel.from_pretrained(base(), folder / f"{name}-back").eval()
        rows.append(logits(model, ids[number : number + 1]))
    return torch.cat(rows)


def test_each_row_computes_what_it_computes_alone(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2, use_rslora=True, alpha_pattern={"v_proj": 5})
    write(tmp_path, 3, PackSettings(density=0.4), target_modules=["up_proj", "o_proj"])
    model, names = base(), ["1", "2", None, "3", "1"]
    with BatchPool(model) as pool:
        for name in ("3", "1", "2"):
            pool.add(name, tmp_path / f"{name}.expert")
        with pool.batch(names):
            got = logits(model)
        torch.testing.assert_close(got, alone(tmp_path, names), atol=2e-5, rtol=1e-4)
        assert torch.equal(logits(model), logits(base()))
    assert torch.equal(logits(model), logits(base()))
    assert (got[0] - logits(base())[0]).abs().max() > 0.1


def test_an_entry_too_large_for_half_a_byte_is_kept(tmp_path: Path) -> None:
    write(tmp_path, 1, PackSettings(quality=0.9995))
    model = base()
    with BatchPool(model) as pool:
        pool.add("1", tmp_path / "1.expert")
        with pool.batch(["1"] * 5):
            torch.testing.assert_close(logits(model), alone(tmp_path, ["1"] * 5), atol=2e-5, rtol=1e-4)
        thin = pool.prefetch(["1"])[0].result()
    assert thin.others.size > 0
    assert thin.halves.size > 0


def test_a_bound_in_bytes_holds_and_what_left_comes_back(tmp_path: Path) -> None:
    for seed in range(4):
        write(tmp_path, seed)
    model = base()
    with BatchPool(model) as pool:
        for seed in range(4):
            pool.add(str(seed), tmp_path / f"{seed}.expert")
        one = pool.prefetch(["0"])[0].result().held_bytes
    with BatchPool(model, ready_bytes=int(2.5 * one), capacity_bytes=0) as pool:
        for seed in range(4):
            pool.add(str(seed), tmp_path / f"{seed}.expert")
        for _ in range(2):
            for seed in "0123":
                with pool.batch([seed] * 5):
                    torch.testing.assert_close(logits(model), alone(tmp_path, [seed] * 5), atol=2e-5, rtol=1e-4)
        figures = pool.figures
    assert figures.resident_bytes <= 2.5 * one
    assert (figures.misses, figures.hits, figures.evictions) == (8, 0, 8 - figures.resident)
    assert figures.coded == 0


def test_threads_run_batches_of_their_own_through_one_model(tmp_path: Path) -> None:
    for seed in (1, 2):
        write(tmp_path, seed)
    model = base()
    wanted = {name: alone(tmp_path, [name] * 5) for name in "12"}
    wrong: list[str] = []
    with BatchPool(model) as pool:
        for name in "12":
            pool.add(name, tmp_path / f"{name}.expert")

        def run(name: str) -> None:
            for _ in range(10):
                with pool.batch([name] * 5):
                    if not torch.allclose(logits(model), wanted[name], atol=2e-5, rtol=1e-4):
                        wrong.append(name)

        threads = [threading.Thread(target=run, args=(name,)) for name in "1212"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pool.figures.misses >= 2
    assert wrong == []


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2, use_dora=True)
    write(tmp_path, 3, target_modules=["embed_tokens", "q_proj"])
    with BatchPool(base()) as pool:
        pool.add("1", tmp_path / "1.expert")
        with pytest.raises(InputError, match=r"'1' is .* already"):
            pool.add("1", tmp_path / "1.expert")
        with pytest.raises(InputError, match="use ExpertPool"):
            pool.add("2", tmp_path / "2.expert")
        with pytest.raises(InputError, match="changes more than linear layers"):
            pool.add("3", tmp_path / "3.expert")
        with pytest.raises(InputError, match="no expert 'x' in this pool of 1"), pool.batch(["x"]):
            pass
        with pytest.raises(InputError, match="given 5 rows, the batch names 2 experts"), pool.batch(["1", "1"]):
            logits(pool._model)  # the model that it was made with
    with (
        BatchPool(base(64)) as pool,
        pytest.raises(LayoutMismatchError, match=r"is a Linear of \(48, 64\)|the expert has factors"),
    ):
        pool.add("1", tmp_path / "1.expert")
