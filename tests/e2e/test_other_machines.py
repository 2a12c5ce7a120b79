"""The same bytes decode to the same bits whatever the processor can do and however many threads work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.product.one_decode import digest

NO_VECTORS = "-avx512f,-avx512bw,-avx512vl,-avx512dq,-avx512cd,-avx2,-avx,-fma"


@pytest.mark.parametrize(
    "machine",
    [{"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}, {"NUMBA_CPU_FEATURES": NO_VECTORS}],
    ids=["generic", "without AVX and FMA"],
)
def test_an_encoding_decodes_to_the_same_bits_on_another_machine(machine: dict[str, str], tmp_path: Path) -> None:
    environment = {**os.environ, **machine, "NUMBA_CACHE_DIR": str(tmp_path), "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3"}
    line = [sys.executable, "-W", "ignore", "-m", "tests.core.product.one_decode"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [digest(1)] * 2 == [digest(2)] * 2
