"""`compeft bench pool` at a size that takes a second or two."""

import json
from pathlib import Path

import pytest
from peft import PeftModel

from compeft_client.cli.main import run
from compeft_client.models import pool_benchmark

SMALL = ["bench", "pool", "--parameters", "83000", "--experts", "2", "--device", "cpu"]


def test_it_prints_what_it_measured_and_writes_it_for_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SMALL, "-o", str(tmp_path / "pool.json"), "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "pool.json").read_text())
    assert printed["parameters"] == 2 * pool_benchmark.PER_RANK
    assert printed["experts_per_gb"] > 30 * printed["bf16_experts_per_gb"]
    assert all(printed[name] > 0 for name in ("switch_s", "switch_from_disk_s", "bf16_hotswap_s", "bf16_load_s"))


def test_the_bench_model_has_the_parameters_it_claims() -> None:
    model: PeftModel = pool_benchmark.bert_with_lora(3)
    assert sum(p.numel() for name, p in model.named_parameters() if "lora_" in name) == 3 * pool_benchmark.PER_RANK


def test_one_expert_is_nothing_to_switch_between(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "pool", "--experts", "1"]) == 2
    assert "experts" in capsys.readouterr().err
