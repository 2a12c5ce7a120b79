"""Fine-tuning, checked on a small but real transformers encoder with a real LoRA."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.models.bert.modeling_bert import BertConfig, BertModel

from compeft_client.models.adapter import rest
from compeft_client.models.fine_tune import (
    Classifier,
    Examples,
    TuningSettings,
    evaluate,
    features,
    fine_tune,
    fit_probe,
    linear,
    padded,
    prepare_device,
    score,
    training_batches,
)
from compeft_core.errors import InputError, LayoutMismatchError, NotFiniteError

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft asks transformers

HIDDEN = 32
SETTINGS = TuningSettings(epochs=6, batch_size=4, lr=5e-3)


def classifier(dropout: float = 0.0) -> Classifier:
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
    config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], lora_dropout=dropout)
    encoder = get_peft_model(BertModel(config, add_pooling_layer=False), lora)
    return Classifier(encoder, linear(torch.zeros(2, HIDDEN), torch.zeros(2)), pad_id=0)


def examples(count: int = 40) -> Examples:
    """Rows of 2 to 12 tokens; the class is whether they come from the upper half of the vocabulary."""
    random = np.random.default_rng(1)
    labels = [row % 2 for row in range(count)]
    tokens = [random.integers(5 + 20 * label, 25 + 20 * label, random.integers(2, 13)).tolist() for label in labels]
    return Examples(tokens, labels)


def parameters(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_fine_tuning_learns_a_task_that_a_zero_head_only_guesses() -> None:
    model, rows = classifier(), examples()
    before = evaluate(model, rows)
    loss = fine_tune(model, rows, SETTINGS)
    after = evaluate(model, rows)
    assert before.accuracy == pytest.approx(0.5)
    assert before.loss == pytest.approx(np.log(2), abs=1e-6)
    assert after.accuracy == 1.0
    assert after.loss < loss < before.loss


def test_only_the_adapter_and_the_head_change() -> None:
    model = classifier()
    before = parameters(model)
    fine_tune(model, examples(), SETTINGS)
    changed = {name for name, value in parameters(model).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_" in name or name.startswith("head.")}


def test_what_rests_stays_bit_for_bit() -> None:
    model = classifier()
    rest(model.encoder, [".lora_A.weight"])
    before = parameters(model)
    fine_tune(model, examples(), SETTINGS)
    changed = {name for name, value in parameters(model).items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".lora_B." in name or name.startswith("head.")}


def test_b_learns_so_many_times_faster_than_a() -> None:
    steps = []
    for ratio in (1.0, 5.0):
        model = classifier()
        before = parameters(model)
        fine_tune(model, examples(4), TuningSettings(batch_size=4, lr=1e-3, b_ratio=ratio))
        after = parameters(model)
        steps.append([float((after[name] - before[name]).abs().max()) for name in before if ".lora_B." in name])
    slow, fast = steps
    assert all(b == pytest.approx(5 * a, rel=1e-3) for a, b in zip(slow, fast, strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_same_seed_gives_the_same_bits_whatever_the_global_random_state(dropout: float) -> None:
    prepare_device(threads=1)
    first, second = classifier(dropout), classifier(dropout)
    fine_tune(first, examples(), SETTINGS)
    torch.manual_seed(12345)
    fine_tune(second, examples(), SETTINGS)
    expected = parameters(first)
    assert all(torch.equal(value, expected[name]) for name, value in parameters(second).items())


def test_another_seed_gives_another_result() -> None:
    first, second = classifier(), classifier()
    fine_tune(first, examples(), TuningSettings(seed=0, batch_size=4))
    fine_tune(second, examples(), TuningSettings(seed=1, batch_size=4))
    assert not torch.equal(first.head.weight, second.head.weight)


def test_the_global_random_state_is_left_alone() -> None:
    model = classifier(dropout=0.5)
    before = torch.get_rng_state()
    fine_tune(model, examples(), SETTINGS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_diverged_training_is_reported_and_not_returned() -> None:
    with pytest.raises(NotFiniteError, match="training loss is nan: lower the learning rates"):
        fine_tune(classifier(), examples(), TuningSettings(epochs=3, lr=1e38, head_lr=1e38))


def test_every_row_is_visited_once_an_epoch() -> None:
    batches = list(training_batches(examples(41), TuningSettings(epochs=2, batch_size=4)))
    first, second = batches[: len(batches) // 2], batches[len(batches) // 2 :]
    assert sorted(np.concatenate(first)) == sorted(np.concatenate(second)) == list(range(41))
    assert max(map(len, batches)) == 4


def test_rows_of_a_batch_have_like_lengths() -> None:
    rows = Examples([[1] * length for length in range(1, 65)], [0] * 64)
    for batch in training_batches(rows, TuningSettings(batch_size=8)):
        lengths = [len(rows.tokens[row]) for row in batch]
        assert max(lengths) - min(lengths) < 12


def test_short_rows_are_filled_and_masked() -> None:
    ids, mask = padded([[7, 8, 9], [5]], pad_id=3)
    assert ids.tolist() == [[7, 8, 9], [5, 3, 3]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_features_are_in_row_order_and_do_not_depend_on_the_rows_beside_them() -> None:
    model, rows = classifier(), examples(70)
    together = features(model, rows)
    for row in (0, 33, 69):
        alone = features(model, Examples([rows.tokens[row]], [rows.labels[row]]))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-5)


def test_a_score_counts_right_answers_and_averages_the_loss() -> None:
    head = linear(torch.tensor([[0.0], [1.0]]), torch.zeros(2))
    result = score(head, torch.tensor([[2.0], [-2.0], [2.0]]), [1, 0, 0])
    right, wrong = np.log1p(np.exp(-2)), np.log1p(np.exp(2))
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.loss == pytest.approx((2 * right + wrong) / 3, rel=1e-6)
    assert result.count == 3


def test_a_probe_finds_the_minimum_that_its_docstring_names() -> None:
    random = np.random.default_rng(0)
    pooled = torch.from_numpy(random.normal(3.0, [1.0, 10.0, 0.1], (200, 3)).astype(np.float32))
    labels = [int(row[0] + row[1] / 10 > 6) for row in pooled.tolist()]
    probe = fit_probe(pooled, labels, 2, penalty=0.1)
    deviation, mean = pooled.std(0, correction=0), pooled.mean(0)
    weight = (probe.weight.detach() * deviation).requires_grad_()
    bias = (probe.bias.detach() + probe.weight.detach() @ mean).requires_grad_()
    logits = (pooled - mean) / deviation @ weight.T + bias
    (torch.nn.functional.cross_entropy(logits, torch.tensor(labels)) + 0.05 * weight.square().sum()).backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-4
    assert score(probe, pooled, labels).accuracy > 0.95


def test_a_feature_that_never_varies_does_not_harm_a_probe() -> None:
    pooled = torch.tensor([[1.0, 5.0], [-1.0, 5.0], [2.0, 5.0], [-2.0, 5.0]])
    assert score(fit_probe(pooled, [1, 0, 1, 0], 2), pooled, [1, 0, 1, 0]).accuracy == 1.0


def test_unusable_rows_and_settings_are_refused() -> None:
    with pytest.raises(LayoutMismatchError, match="1 rows of tokens, 2 labels"):
        Examples([[1]], [0, 1])
    with pytest.raises(InputError, match="no examples"):
        Examples([], [])
    with pytest.raises(InputError, match="must be at least 1"):
        TuningSettings(epochs=0)
    with pytest.raises(InputError, match="must be above 0"):
        TuningSettings(lr=float("nan"))
    with pytest.raises(InputError, match="must be above 0"):
        TuningSettings(b_ratio=0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_code_learns_on_a_gpu() -> None:
    model = classifier().to(prepare_device(threads=1))
    fine_tune(model, examples(), SETTINGS)
    assert evaluate(model, examples()).accuracy == 1.0
