"""The measurement of ways to code an expert: packed batches, folded weights, the peers' bytes and what they rebuild."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.folding import Folding, LowRank, differences_of
from benchmarks.language_model.scoring import Score, answers, score
from benchmarks.language_model.tasks import Row, load_rows, save_rows
from benchmarks.product.evidence import Expert, experts, gain_kept
from benchmarks.product.report import Row as Measured
from benchmarks.product.report import goals, means, table
from benchmarks.product.ways import WAYS, Problem

RANDOM = np.random.default_rng(0)


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    return LlamaForCausalLM(config).eval()


def rows() -> list[Row]:
    start = (1, 2, 3)
    return [Row((*start, *map(int, RANDOM.integers(0, 50, size))), answer) for size, answer in ((6, 1), (9, 3), (4, 2), (9, 2))]


def test_a_packed_batch_scores_each_row_as_the_row_alone() -> None:
    model, batch = tiny_model(), rows()
    with torch.inference_mode():
        exact, logs = answers(model, batch)
        for number, row in enumerate(batch):
            known = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
            first = len(row.ids) - row.answer
            alone = sum(float(known[at - 1, row.ids[at]]) for at in range(first, len(row.ids)))
            greedy = all(int(known[at - 1].argmax()) == row.ids[at] for at in range(first, len(row.ids)))
            assert abs(alone - float(logs[number])) < 1e-4
            assert greedy == bool(exact[number])


def test_a_packed_batch_trains_by_the_same_gradients_as_its_rows_one_by_one() -> None:
    model, batch = tiny_model(), rows()
    answers(model, batch)[1].sum().backward()
    together = model.model.layers[0].self_attn.q_proj.weight.grad.clone()
    model.zero_grad()
    for row in batch:
        answers(model, [row])[1].sum().backward()
    assert torch.allclose(together, model.model.layers[0].self_attn.q_proj.weight.grad, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
def test_folding_an_adapter_gives_the_outputs_of_peft_and_taking_it_out_gives_the_base_back() -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    base, batch = tiny_model(), rows()
    before = score(base, batch)
    adapted = get_peft_model(tiny_model(), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    state = {name: tensor.detach().numpy() for name, tensor in get_peft_model_state_dict(adapted).items()}
    folding = Folding(base)
    folding.load(differences_of(state, 2.0))
    ours, theirs = score(base, batch), score(adapted.get_base_model(), batch)
    assert abs(ours.loss - theirs.loss) < 1e-4
    assert abs(ours.loss - before.loss) > 1e-2
    folding.load({})
    assert score(base, batch) == before


def problem(rank: int = 4) -> Problem:
    """Two modules of unlike shapes and sizes, whose spectra fall."""
    state, modules = {}, {}
    for name, (out, into) in {"a": (96, 64), "b": (130, 200)}.items():
        falling = 0.5 ** np.arange(rank)
        left = (RANDOM.standard_normal((out, rank)) * falling).astype(np.float32)
        right = RANDOM.standard_normal((rank, into)).astype(np.float32)
        modules[name] = LowRank(left, right, 2.0)
        state |= {f"{name}.lora_A.weight": right, f"{name}.lora_B.weight": left}
    expert = Expert("made", "minilm", Path(), Score(0, 0, 1), Score(1, 1, 0), 2.0)
    return Problem(expert, state, modules, [1.0, 3.0])


def likeness(given: Problem, way: str) -> float:
    """cos^2 of dW and what the way gives back, over all modules."""
    coded = WAYS[way](given).differences
    dense = {name: d.dense().numpy() if isinstance(d, LowRank) else d for name, d in coded.items()}
    true = {name: pair.dense().numpy() for name, pair in given.modules.items()}
    inner = sum(float((true[name] * value).sum()) for name, value in dense.items())
    square, norm = (sum(float((value**2).sum()) for value in values.values()) for values in (dense, true))
    return inner**2 / (square * norm)


@pytest.mark.parametrize(
    ("way", "least", "bits"),
    [("int4 of A and B", 0.97, 4.4), ("nf4 of A and B", 0.97, 4.4), ("LoRAQuant 2 bit @ 0.9", 0.65, 2.3)],
)
def test_a_quantising_peer_keeps_the_update_at_the_bits_it_claims(way: str, least: float, bits: float) -> None:
    given = problem()
    assert likeness(given, way) > least
    assert WAYS[way](given).size_bytes * 8 <= bits * given.bf16_bytes / 2


def test_the_truncated_svd_fits_its_bytes_and_takes_the_largest_components_of_all_modules() -> None:
    given = problem(8)
    coded = WAYS["SVD in bf16, 8 x"](given)
    assert coded.size_bytes == given.bf16_bytes // 8 == 2 * (96 + 64 + 130 + 200)  # one component of each
    for name, pair in coded.differences.items():
        found, true = (np.linalg.svd(p.dense().numpy())[1] for p in (pair, given.modules[name]))
        assert abs(found[0] / true[0] - 1) < 0.01


def test_product_space_by_module_weights_spends_more_on_the_module_that_matters() -> None:
    given = problem()
    plain, aware = WAYS["product space 50 x"](given), WAYS["product space, base-aware, 200 x"](given)
    assert plain.size_bytes <= given.bf16_bytes / 50
    assert set(aware.differences) <= {"b"}


def test_the_gain_kept_is_one_for_the_expert_and_nothing_for_the_base() -> None:
    expert = Expert("made", "minilm", Path(), Score(0.5, 0.4, 1.0), Score(0.9, 0.8, 0.2), 1.0)
    assert gain_kept(expert, expert.tuned) == {"accuracy": 1.0, "soft": 1.0, "loss": 1.0}
    assert gain_kept(expert, expert.base) == {"accuracy": 0.0, "soft": 0.0, "loss": 0.0}


def test_experts_without_a_gain_and_unfinished_ones_are_left_out(tmp_path: Path) -> None:
    for name, tuned in (("good-0", 0.9), ("flat-0", 0.51)):
        folder = tmp_path / "minilm" / name
        folder.mkdir(parents=True)
        scores = {"base": {"accuracy": 0.5, "soft": 0.5, "loss": 1.0}, "tuned": {"accuracy": tuned, "soft": 0.6, "loss": 0.5}}
        (folder / "metrics.json").write_text(json.dumps(scores))
        (folder / "adapter_config.json").write_text(json.dumps({"r": 16, "lora_alpha": 32}))
    (tmp_path / "minilm" / "training-0").mkdir()
    assert [(expert.name, expert.scale) for expert in experts(("minilm",), tmp_path)] == [("good-0", 2.0)]


def test_the_table_gives_the_mean_and_the_worst_of_each_way() -> None:
    measured = [
        Measured(name, "minilm", "d", "nf4 of A and B", 1000, 250, 0.0, {"accuracy": kept, "soft": kept / 2})
        for name, kept in (("one", 0.6), ("two", 1.0))
    ]
    assert means(measured)["minilm: nf4 of A and B: mean accuracy"] == 0.8
    assert means(measured)["minilm: nf4 of A and B: worst soft"] == 0.3
    assert "4.0 x" in table(measured)


def test_a_goal_is_reached_by_the_mean_and_by_the_worst_expert() -> None:
    def printed(*kept: float) -> str:
        rows = [
            Measured(f"task-mild-{at}", "minilm", "d", "product space 200 x", 1000, 5, 0.0, {"accuracy": value, "soft": value})
            for at, value in enumerate(kept)
        ]
        return goals(rows)

    assert "mean 0.980 (goal 0.95), worst 0.960 (goal 0.75): reached, by fewer than 12 experts; 2 experts, 1 tasks" in printed(
        0.96, 1.0
    )
    assert "reached; 12 experts" in printed(*[1.0] * 12)
    assert "missed" in printed(0.74, 1.3)
    assert "missed" in printed(0.94, 0.94)


def test_rows_are_read_back_as_written(tmp_path: Path) -> None:
    given = rows()
    save_rows(tmp_path / "rows.json", given)
    assert load_rows(tmp_path / "rows.json") == given
