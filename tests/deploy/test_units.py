"""Every unit of deploy/systemd as systemd itself reads it, and the commands in them as `compeft` itself reads them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from compeft_client.cli.root import root
from tests.deploy.conftest import DEPLOY, program

UNITS = sorted((DEPLOY / "systemd").iterdir())
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
WORST = 2.0
"""The highest exposure, of 10, that `systemd-analyze security` may give a unit."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as an installation has them: the programs they start are there."""
    folder, binaries = tmp_path_factory.mktemp("units"), str(Path(sys.executable).parent)
    nginx = program("nginx", "apt-get install nginx-light")
    for unit in UNITS:
        text = unit.read_text().replace("/opt/compeft/bin", binaries).replace("/usr/sbin/nginx", nginx)
        (folder / unit.name).write_text(text)
    return folder


def test_systemd_has_nothing_to_say_about_the_units(installed: Path) -> None:
    analyze = program("systemd-analyze", "apt-get install systemd")
    done = subprocess.run(
        [analyze, "verify", *sorted(map(str, installed.iterdir()))], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "compeft" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_a_service_is_well_confined(unit: Path, installed: Path) -> None:
    analyze = program("systemd-analyze", "apt-get install systemd")
    words = [analyze, "security", "--offline=true", "--json=short", f"--threshold={int(10 * WORST)}", str(installed / unit.name)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-400:] + done.stderr
    assert json.loads(done.stdout)


def commands_of(unit: Path) -> list[list[str]]:
    """The words after `compeft` in a unit's Exec lines."""
    text = unit.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("Exec")]
    found = [match for line in lines for match in re.findall(r"/opt/compeft/bin/compeft ([^&;']*)", line)]
    return [words.split() for words in found]


@pytest.mark.parametrize("unit", [s for s in SERVICES if commands_of(s)], ids=lambda unit: unit.name)
def test_the_commands_of_a_service_exist_with_these_options(unit: Path) -> None:
    for words in commands_of(unit):
        found: click.Command = root()
        while isinstance(found, click.Group):
            found = found.get_command(click.Context(found), words.pop(0)) or found.commands["no such command"]
        known = {name for parameter in found.params for name in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known
