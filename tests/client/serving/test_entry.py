"""What vLLM's workers load of the plug-in."""

import subprocess
import sys


def test_the_entry_point_loads_neither_numba_nor_grpc() -> None:
    code = "import sys, compeft_client.serving.vllm_entry; print([m for m in ('numba', 'llvmlite', 'grpc') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
