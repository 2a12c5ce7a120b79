"""The language-model app and its compressed twin: what differs, what their rounds measure, and the errors of that road."""

import difflib
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.task_identity import TaskIdentity

from tests.examples.language_rounds import APPS, CLIENTS, app_of, config_of, run_compressed, run_plain

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft asks transformers
CHANGED = ("language/client_app.py", "language/server_app.py")
SMALL = {"num-server-rounds": 2, "train-rows": 8, "test-rows": 8}
PARAMETERS = 8192


@pytest.fixture(autouse=True)
def flower_task() -> Iterator[None]:
    """Flower builds messages only inside a task."""
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


def files(version: str) -> dict[str, str]:
    found = (path for path in sorted((APPS / version).rglob("*")) if path.suffix in (".py", ".toml", ".jsonl"))
    return {str(path.relative_to(APPS / version)): path.read_text() for path in found}


def test_two_lines_of_a_flowertune_shaped_app_change_imports_aside() -> None:
    plain, compressed = files("plain"), files("compressed")
    assert set(plain) == set(compressed)
    assert tuple(name for name in plain if plain[name] != compressed[name]) == CHANGED
    lines = [
        line
        for name in CHANGED
        for line in list(difflib.unified_diff(plain[name].splitlines(), compressed[name].splitlines(), n=0))[2:]
        if not line.startswith("@@")
    ]
    added = [line for line in lines if line.startswith("+") and not line[1:].startswith(("import ", "from "))]
    assert len(added) == 2
    assert [line for line in lines if line.startswith("-")] == ["-app = ClientApp()"]
    page = (APPS.parents[1] / "docs" / "fine-tune-a-language-model.md").read_text()
    assert f"```diff\n-app = ClientApp()\n{added[0]}\n```\n" in page
    assert f"```diff\n{added[1]}\n```\n" in page


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # flwr builds bundles with a renamed pattern class
@pytest.mark.parametrize("version", ["plain", "compressed"])
def test_flower_bundles_both(version: str) -> None:
    assert 0 < len(build_fab_from_disk(APPS / version)) < 100_000


def test_no_row_occurs_at_two_sites_or_in_training_and_test() -> None:
    rows = [line for name, text in files("plain").items() if name.endswith(".jsonl") for line in text.splitlines()]
    assert len(rows) == len(set(rows)) == CLIENTS * (80 + 32)


def test_the_model_learns_and_the_compressed_run_moves_a_fraction_of_the_bytes(tmp_path: Path) -> None:
    many = SMALL | {"learning-rate": 0.05, "local-epochs": 4}
    plain, compressed = run_plain(tmp_path, **many), run_compressed(tmp_path, **many)
    assert plain.measured["loss"][0] == compressed.measured["loss"][0], "the base model alone, before any round"
    begun, learned = plain.measured["loss"][0], plain.measured["loss"][-1]
    assert learned < 0.97 * begun
    assert compressed.measured["loss"][-1] < begun - 0.2 * (begun - learned), "5 % of each update, from a fresh start"
    report = compressed.report
    assert report is not None
    assert (report.rounds, len(report.clients), len(report.refusals)) == (2, CLIENTS, 0)
    assert report.traffic.payload_bytes < 4 * PARAMETERS * CLIENTS * 2 * 2 / 20


def test_gradient_accumulation_counts_as_one_larger_batch_and_checkpointing_changes_nothing() -> None:
    with app_of("plain"):
        from language.model import load  # type: ignore[import-not-found]  # the app is on the path here only
        from language.task import (  # type: ignore[import-not-found]  # the same
            DATA,
            Settings,
            load_rows,
            train,
        )

        def trained(batch: int, accumulation: int, **changes: object) -> float:
            model, tokenizer = load(config_of("plain", **changes))
            rows = load_rows(tokenizer, DATA / "north", "train", 8, 16)
            train(model, rows, Settings(batch, accumulation, 1, 0.01, 3))
            return float(sum(p.detach().abs().sum() for n, p in model.named_parameters() if "lora_B" in n))

        one = trained(8, 1)
        assert one > 0
        assert trained(8, 1, **{"gradient-checkpointing": True}) == pytest.approx(one, rel=1e-5)
        assert trained(4, 2) == pytest.approx(one, rel=0.05)
        model, _ = load(config_of("plain", dora=True))
        assert any("lora_magnitude_vector" in name for name, p in model.named_parameters() if p.requires_grad)


def test_the_loss_is_that_of_the_answer_and_padding_does_not_change_it() -> None:
    with app_of("plain"):
        from language.model import load  # type: ignore[import-not-found]  # the app is on the path here only
        from language.task import DATA, load_rows, measure  # type: ignore[import-not-found]  # the same

        model, tokenizer = load(config_of("plain"))
        rows = load_rows(tokenizer, DATA / "west", "test", 6, 32)
        assert tokenizer.decode(rows[0].ids[-rows[0].answer :]) in ("Portuguese<|im_end|>", "Spanish<|im_end|>")
        alone = [measure(model, [row])[0] * row.answer for row in rows]
        together, _ = measure(model, rows)
        assert together == pytest.approx(sum(alone) / sum(row.answer for row in rows), rel=1e-5)
