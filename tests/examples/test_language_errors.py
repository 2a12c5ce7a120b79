"""What goes wrong when a language model is fine-tuned across sites: each is one clear line on the server's screen, and a skip or an end."""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity

from compeft_server.flower.run_health import RunStoppedError, readable
from tests.examples.language_rounds import CLIENTS, Ran, run_compressed

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
SMALL = {"num-server-rounds": 1, "train-rows": 4, "test-rows": 4, "max-tokens": 8}
Hook = Callable[[Any, Any], None]
ODD = 3
"""Number and, plus 1000, node of the site that differs."""


@pytest.fixture(autouse=True)
def flower_task() -> Iterator[None]:
    """Flower builds messages only inside a task."""
    yield
    TaskIdentity._task_id = TaskIdentity._run_id = TaskIdentity._node_id = None


def screen(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of the run's last lines."""
    return [
        r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.getMessage().startswith("client at node")
    ]


def one_odd_site(tmp_path: Path, odd: Hook) -> Ran:
    """A round in which the site ODD's model and tokenizer are changed by `odd` as soon as they are loaded."""
    return run_compressed(
        tmp_path, hook=lambda node, model, tokenizer: odd(model, tokenizer) if node == 1000 + ODD else None, **SMALL
    )


def other_weights(model: Any, _: Any) -> None:
    with torch.no_grad():
        model.get_base_model().model.norm.weight.add_(0.5)


def other_tokenizer(_: Any, tokenizer: Any) -> None:
    tokenizer.add_tokens(["<new>"])


def other_template(_: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "model")


def other_rank(model: Any, _: Any) -> None:
    model.peft_config["default"].r = 16


def no_memory(_: Any, __: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity\nof 15.9 GiB")


ERRORS: dict[str, tuple[Hook, str]] = {
    "another base model": (
        other_weights,
        r"WrongBaseError: trained on base model of no name \(weights \w{16}\), language is bound to",
    ),
    "another tokenizer": (
        other_tokenizer,
        r"WrongBaseError: trained with tokenizer \w{16}, language is bound to tokenizer \w{16}",
    ),
    "another chat template": (
        other_template,
        r"WrongBaseError: trained with chat template \w{16}, language is bound to chat template",
    ),
    "another rank": (other_rank, r"WrongAdapterError: this client's adapter has r 16, language has 8: build the adapter with"),
    "out of memory": (no_memory, r"OutOfMemoryError: CUDA out of memory.*; out of memory at this site: give it a smaller batch"),
}


@pytest.mark.parametrize("name", list(ERRORS))
def test_a_site_that_differs_is_left_out_and_named_in_one_line(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd, words = ERRORS[name]
    ran = one_odd_site(tmp_path, odd)
    (line,) = screen(caplog)
    assert re.fullmatch(rf"client at node {1000 + ODD} failed in rounds 1: {words}.*", line), line
    assert ran.report is not None
    assert [row.participants for row in ran.report.versions] == [0, CLIENTS - 1]


@pytest.mark.parametrize("name", ["another base model", "another rank"])
def test_where_every_site_differs_the_run_ends_with_that_line(name: str, tmp_path: Path) -> None:
    odd, words = ERRORS[name]
    every = lambda node, model, tokenizer: odd(model, tokenizer) if node >= 1000 else None  # noqa: E731
    with pytest.raises(
        RunStoppedError, match=rf"no client's update was accepted; 4 of 4 clients failed, first node \d+: {words}"
    ):
        run_compressed(tmp_path, hook=every, **SMALL)


def test_a_site_without_rows_is_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty = tmp_path / "rows"
    empty.mkdir()
    for split in ("train", "test"):
        (empty / f"{split}.jsonl").write_text("")
    ran = run_compressed(tmp_path, {ODD: {"data": str(empty)}}, **SMALL)
    assert screen(caplog) == [f"client at node {1000 + ODD} was skipped in rounds 1: its weight is 0, it has no rows to train on"]
    assert ran.report is not None
    assert ran.report.versions[-1].participants >= CLIENTS - 1


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        (
            "<class 'compeft_proto.errors.WrongBaseError'>:<'trained on x, y is bound to z'>",
            "WrongBaseError: trained on x, y is bound to z",
        ),
        ('ValueError("it\'s wrong")', "ValueError: it's wrong"),
        ("<class 'RuntimeError'>:<'first\nsecond'>", "RuntimeError: first"),
        ("KeyError()", "KeyError()"),
        ("Node Unavailable", "Node Unavailable"),
        ("", "no reason given"),
        ("x" * 2000, "x" * 500),
    ],
)
def test_a_clients_error_is_one_line(reason: str, line: str) -> None:
    assert readable(reason) == line
