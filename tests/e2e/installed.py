"""The product as a user installs it: a wheel in an environment of its own, and a page's commands run there with a bare environment."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

import psutil

from tests.docs.blocks import ROOT, script_of


def install_wheel(folder: Path) -> Path:
    """Build a wheel of this checkout, install it in a new virtual environment, and return the folder of its programs.

    The dependencies are those of the running Python, by a path file; a path file inside that folder, such as the one of this checkout's
    editable installation, is not read from there. So `compeft` is importable from the wheel only.
    """
    wheels, environment = folder / "wheels", folder / "environment"
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)], check=True)
    venv.create(environment, with_pip=False, symlinks=True)
    site = next((environment / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = wheels.glob("compeft-*.whl")
    own = ["--python", str(environment / "bin" / "python"), "install", "--no-deps", "--ignore-installed", str(wheel)]
    subprocess.run([*pip, *own], check=True)
    _copy_programs(Path(sys.executable).parent, environment / "bin")
    return environment / "bin"


def _copy_programs(source: Path, target: Path) -> None:
    """Copy the console scripts that the target lacks, with its Python in their first line."""
    for script in source.iterdir():
        if script.is_symlink() or not script.is_file() or (target / script.name).exists():
            continue
        head, _, rest = script.read_bytes().partition(b"\n")
        if head.startswith(b"#!") and b"python" in head:
            (target / script.name).write_bytes(b"#!" + str(target / "python").encode() + b"\n" + rest)
            (target / script.name).chmod(0o755)


def run_page(page: Path, folder: Path, binaries: Path) -> subprocess.CompletedProcess[str]:
    """Run the blocks of a page in `folder`, in an environment with HOME and PATH only. What the page leaves running is ended."""
    home = folder / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin"}
    command = ["bash", "-c", script_of(page)]
    out, err = folder / "page.out", folder / "page.err"
    with out.open("w") as stdout, err.open("w") as stderr:
        running = subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout, stderr=stderr, start_new_session=True)
        running.wait()
    _end(home)
    return subprocess.CompletedProcess(command, running.returncode, out.read_text(), err.read_text())


def _end(home: Path) -> None:
    """End the processes whose home folder this is: the page starts an aggregator, and Flower a SuperLink that stays."""
    give_up = time.monotonic() + 30
    number = signal.SIGTERM
    while (found := _with_home(home)) and time.monotonic() < give_up:
        for process in found:
            process.send_signal(number)
        psutil.wait_procs(found, timeout=10)
        number = signal.SIGKILL


def _with_home(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("HOME") == str(home):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
