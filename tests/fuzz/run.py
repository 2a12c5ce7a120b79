"""Coverage-guided fuzzing of one target, or of all in turn: `python -m tests.fuzz.run [TARGET] [--seconds 60] [--cases N]`.

Needs atheris (a `fuzz` extra). The seed corpus is tests/fuzz/corpus/TARGET; findings are written beside the working directory as
atheris does, and end the run. A case may take one second (`--hang`) and 2 GiB.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

CORPUS = Path(__file__).parent / "corpus"


def main() -> int:
    """Run each target in a process of its own, because a fuzzer never returns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", default="", choices=["", *sorted(folder.name for folder in CORPUS.iterdir())])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--cases", type=int, default=0, help="for each target; 0 for as many as the time allows")
    parser.add_argument("--hang", type=int, default=1, help="seconds that one case may take")
    chosen = parser.parse_args()
    from tests.fuzz.targets import TARGETS

    for target in [chosen.target] if chosen.target else TARGETS:
        with TemporaryDirectory() as found:
            done = subprocess.run(command(target, chosen, found), capture_output=True, text=True, check=False)
        print(f"{target}: {next((line for line in done.stderr.splitlines() if line.startswith('Done')), 'failed')}", flush=True)
        if done.returncode:
            print(done.stderr[-4000:], file=sys.stderr)
            return done.returncode
    return 0


def command(target: str, chosen: argparse.Namespace, found: str) -> list[str]:
    """The command line of one fuzzing process; what it discovers goes to the folder `found`, not to the seeds."""
    line = [sys.executable, "-m", "tests.fuzz.one", target, found, str(CORPUS / target)]
    line += [f"-timeout={chosen.hang}", "-rss_limit_mb=2048", "-max_len=65536", f"-max_total_time={chosen.seconds}"]
    return [*line, f"-runs={chosen.cases}"] if chosen.cases else line


if __name__ == "__main__":
    sys.exit(main())
