"""docs/operations.md is true: its blocks marked `run` are run, from top to bottom, and every other command in it exists."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from compeft_server.demo.processes import free_ports
from tests.client import builders
from tests.deploy.conftest import DEPLOY, ROOT, program
from tests.deploy.test_images import check

PAGE = ROOT / "docs" / "operations.md"
TEXT = PAGE.read_text()
FOLDERS = {"/var/lib/compeft-edge": "edge", "/var/lib/compeft": "data", "agg.example": "localhost"}


def blocks(mark: str) -> list[str]:
    """The fenced blocks of the page whose info string is `mark`."""
    return re.findall(rf"(?ms)^```{mark}\n(.*?)^```$", TEXT)


def script(folder: Path) -> str:
    """All blocks to run as one script, each announced, with this test's folders and name."""
    first, *others = blocks("bash run")
    for old, new in FOLDERS.items():
        first = first.replace(old, new if new == "localhost" else str(folder / new))
    parts = [first, *others]
    return "set -euo pipefail\n" + "\n".join(f"echo '== block {n}'\n{part}" for n, part in enumerate(parts))


@pytest.mark.e2e
@pytest.mark.timeout(280)
def test_the_page_can_be_followed_from_top_to_bottom(tmp_path: Path) -> None:
    ports = dict(zip(("9443", "9444", "8443"), free_ports(3), strict=True))
    builders.write_adapter(tmp_path / "my-lora", builders.tuned(builders.initial(2), 1))
    builders.write_adapter(tmp_path / "start", builders.initial(2))
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "systemctl").symlink_to(Path(__file__).with_name("systemctl.py"))
    program("promtool", "apt-get install prometheus")
    text = script(tmp_path)
    for port, free in ports.items():
        text = text.replace(port, str(free))
    text = text.replace("compeft health --data $DATA", f"compeft health localhost:{ports['9443']} --data $DATA")
    environment = {
        **os.environ,
        **{f"TEST_{port}": str(free) for port, free in ports.items()},
        "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "TEST_UNITS": str(DEPLOY / "systemd"),
        "TEST_BIN": str(Path(sys.executable).parent),
        "TEST_STATE": str(tmp_path),
    }
    words = ["bash", "-c", text]
    try:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    finally:
        stop = [tools / "systemctl", "stop", "compeft-aggregator.service"]
        subprocess.run(stop, env={**environment, "DATA": str(tmp_path / "data"), "HOST": "localhost"}, check=True)
    log = (tmp_path / "aggregator.log").read_text()
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{log[-2000:]}"
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert (tmp_path / "sentiment-now" / "adapter_model.safetensors").exists()
    assert "compeft_version{" in (tmp_path / "metrics.txt").read_text()


def commands() -> list[str]:
    """Every line of every block, continued lines joined, comments dropped."""
    lines = "\n".join([*blocks("bash not-run"), *blocks("bash run")]).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def test_every_compeft_command_of_the_page_exists_with_these_options() -> None:
    said = [*commands(), *re.findall(r"`([^`\n]+)`", TEXT)]
    found = [match for line in said for match in re.findall(r"(?:^|-- |aggregator |\| )compeft ([a-z].*)", line)]
    assert len(found) > 50
    for line in found:
        words = [word for word in re.split(r"[<>|;&]", line)[0].split() if word != "-"]
        if words != ["--help"] and "--help" not in words:
            check(words)


def test_every_unit_and_file_that_the_page_names_is_there() -> None:
    units = set(re.findall(r"compeft-[a-z]+\.(?:service|timer)", TEXT))
    assert len(units) >= 8
    for unit in units:
        assert (DEPLOY / "systemd" / unit).exists(), unit
    for name in set(re.findall(r"(?<![\w/])deploy/[\w./-]+\w", TEXT)) - {"deploy/.env", "deploy/secrets"}:
        assert (ROOT / name).exists() or list(ROOT.glob(f"{name}*")), name


def test_every_alert_has_its_section() -> None:
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    names = [rule["alert"] for group in alerts["groups"] for rule in group["rules"]]
    assert len(names) >= 8
    for name in names:
        assert f"### {name}\n" in TEXT


def test_the_scripts_of_the_page_take_the_options_they_are_given() -> None:
    usage = subprocess.run([DEPLOY / "install-edge.sh", "--help"], capture_output=True, text=True, check=True).stdout
    for line in commands():
        if line.startswith("deploy/install-edge.sh"):
            for word in shlex.split(line):
                assert not word.startswith("--") or word in usage
