"""`compeft tune` with a real measuring command: a program that tells how near a directory's adapter is to the trained one."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from compeft_client.cli.main import run
from compeft_client.packing.expert_file import open_expert
from compeft_client.packing.pack import load_compressed
from compeft_client.search.measure import adapter_float32, write_untrained
from tests.client import builders

MEASURE = """
import sys, pathlib
import numpy as np
from safetensors.numpy import load_file
folder, trained, log = sys.argv[1:]
with open(log, "a") as stream:
    stream.write("x")
a, b = (load_file(pathlib.Path(f) / "adapter_model.safetensors") for f in (folder, trained))
change = lambda t: np.concatenate([(t[n] @ t[n.replace("lora_B", "lora_A")]).ravel() for n in sorted(t) if "lora_B" in n])
print("some chatter")
print(0.5 + 0.4 * float(change(a) @ change(b)) / float(change(b) @ change(b)))
"""


@pytest.fixture
def measuring(adapter: Path, tmp_path: Path) -> str:
    (tmp_path / "measure.py").write_text(MEASURE)
    return f"{sys.executable} {tmp_path / 'measure.py'} {{dir}} {adapter} {tmp_path / 'calls'}"


def tune(adapter: Path, untrained: Path, measuring: str, output: Path, *more: str) -> int:
    options = ["--init", str(untrained), "--eval", measuring, "-o", str(output), "--format", "json"]
    return run(["tune", str(adapter), *options, *more])


def test_it_goes_down_until_the_floor_and_writes_what_it_chose(
    adapter: Path, untrained: Path, measuring: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(adapter, untrained, measuring, tmp_path / "out.expert", "--floor", "0.8") == 0
    found = json.loads(capsys.readouterr().out)
    arms = [p["arm"] for p in found["points"]]
    assert arms[:2] == ["base only", "uncompressed"]
    assert found["points"][0]["metric"] == pytest.approx(0.5)
    assert found["points"][0]["bytes"] == 0
    chosen = found["chosen"]
    retained = {p["arm"]: p["retained"] for p in found["points"]}
    assert retained[chosen["arm"]] >= 0.8
    fewer = [p for p in found["points"][2:] if p["bytes"] < chosen["bytes"]]
    assert any(p["retained"] < 0.8 for p in fewer)
    assert (tmp_path / "out.expert").stat().st_size == chosen["bytes"]
    assert load_compressed(tmp_path / "out.expert", init=str(untrained)).tensors
    assert (tmp_path / "out.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(("by", "arm"), [("quality", "quality 0.9"), ("density", "50 %")])
def test_its_ladder_is_the_quality_of_products_or_the_density_of_changes(
    adapter: Path, untrained: Path, measuring: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str, arm: str
) -> None:
    assert tune(adapter, untrained, measuring, tmp_path / "out.expert", "--floor", "0.5", "--by", by) == 0
    found = json.loads(capsys.readouterr().out)
    packed = found["points"][2:]
    assert (found["by"], packed[0]["arm"]) == (by, arm)
    assert [p["bytes"] for p in packed] == sorted((p["bytes"] for p in packed), reverse=True)
    assert packed[0]["kept"] > packed[-1]["kept"] > 0
    is_product = [part.slices is not None for part in open_expert(tmp_path / "out.expert").manifest.parts]
    assert any(is_product) == (by == "quality")
    if by == "quality":
        assert all(p["kept"] >= p["step"] - 1e-6 for p in packed)


def test_an_adapter_without_products_is_tuned_by_density(
    adapter: Path, untrained: Path, measuring: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    builders.write_adapter(adapter, builders.tuned(builders.initial()), use_bdlora={"nblocks": 2})
    assert tune(adapter, untrained, measuring, tmp_path / "out.expert", "--floor", "0.5") == 0
    assert json.loads(capsys.readouterr().out)["by"] == "density"


def test_what_was_measured_is_not_measured_again(
    adapter: Path, untrained: Path, measuring: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(adapter, untrained, measuring, tmp_path / "out.expert", "--floor", "0.8") == 0
    first, calls = capsys.readouterr().out, (tmp_path / "calls").read_text()
    assert tune(adapter, untrained, measuring, tmp_path / "out.expert", "--floor", "0.8", "--force") == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "calls").read_text() == calls
    builders.write_adapter(adapter, builders.tuned(builders.initial(), seed=9))
    assert tune(adapter, untrained, measuring, tmp_path / "out.expert", "--floor", "0.8", "--force") == 0
    assert len((tmp_path / "calls").read_text()) > len(calls)


def test_a_composition_is_measured_packed_and_as_it_was(
    adapter: Path, untrained: Path, measuring: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = builders.write_adapter(tmp_path / "other", builders.tuned(builders.initial(), seed=2))
    assert tune(adapter, untrained, measuring, tmp_path / "out.expert", "--floor", "0.8", "--with", str(other)) == 0
    composed = json.loads(capsys.readouterr().out)["composed"]
    assert 0.5 < composed["compressed"] < 0.9
    assert 0.5 < composed["uncompressed"] < 0.9


def test_a_floor_nothing_reaches_writes_no_file(
    adapter: Path, untrained: Path, measuring: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stubborn = measuring.replace("measure.py", "stubborn.py")
    (tmp_path / "stubborn.py").write_text(
        "import sys; from pathlib import Path; print(float(Path(sys.argv[1]) == Path(sys.argv[2])))"
    )
    assert tune(adapter, untrained, stubborn, tmp_path / "out.expert") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["chosen"], found["file"]) == (None, None)
    assert not (tmp_path / "out.expert").exists()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("print('nothing')", "must print the metric"),
        ("raise SystemExit('no data')", "no data"),
        ("print('nan')", "answered nan"),
        ("print(0.5)", "no gain exists that could be retained"),
    ],
)
def test_a_command_that_does_not_measure_is_refused_by_what_it_said(
    adapter: Path, untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, said: str
) -> None:
    (tmp_path / "bad.py").write_text(program)
    command = f"{sys.executable} {tmp_path / 'bad.py'}"
    assert tune(adapter, untrained, command, tmp_path / "out.expert") != 0
    assert said in capsys.readouterr().err
    assert tune(adapter, untrained, "/no/such/program", tmp_path / "out.expert") != 0
    assert not (tmp_path / "out.expert").exists()


def test_the_base_of_an_adapter_is_its_b_at_zero(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write_untrained(adapter, tmp_path / "base")
    assert {n for n, t in adapter_float32(tmp_path / "base").items() if np.any(t)} == {
        n for n in builders.names() if "lora_A" in n
    }
