"""After `compeft warm` no command compiles a kernel."""

import subprocess
import sys
from pathlib import Path

from tests.client import builders

SCRIPT = """
import gc, sys
from numba.core.dispatcher import Dispatcher
from compeft_client.cli.main import run
assert run(["warm"]) == 0
def signatures():
    return {(d.py_func.__module__, d.py_func.__name__): set(d.signatures) for d in gc.get_objects() if isinstance(d, Dispatcher)
            and d.py_func.__module__.startswith("compeft_core")}
before = signatures()
assert len(before) > 50 and before[("compeft_core.product.trellis", "quantise")]
for line in sys.argv[1].split(";"):
    assert run(line.split()) == 0, line
print("new:", {k: v - before.get(k, set()) for k, v in signatures().items() if v - before.get(k, set())})
"""
COMMANDS = (
    "pack a -o a.expert;unpack a.expert -o b;inspect a.expert;diff a b;pack a --budget 1kB -o t.expert;"
    "pack a --density 0.1 -o d.expert;pack a --density 0.1 --codec rice -o e.expert;inspect d.expert"
)


def test_no_command_compiles_a_kernel_after_warm(tmp_path: Path) -> None:
    builders.write_adapter(tmp_path / "a", builders.tuned(builders.initial()))
    command = [sys.executable, "-c", SCRIPT, COMMANDS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.splitlines()[-1] == "new: {}"
