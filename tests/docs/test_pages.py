"""The commands of README.md, docs/choosing-compression.md, dashboard.md, merging.md, policy.md and storage.md, run as they stand.

Each page's blocks run from top to bottom in a folder with small adapters, a measuring command and an aggregator's data directory, in an
environment that has a home folder and a PATH and nothing else.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compeft_client.packing.pack import PackSettings, save_compressed
from compeft_server.demo.processes import free_ports
from tests.client import builders
from tests.docs.blocks import ROOT, script_of

BIN = Path(sys.executable).parent
MEASURE = """import json, sys
data = open(sys.argv[1] + "/adapter_model.safetensors", "rb").read()
size = 8 + int.from_bytes(data[:8], "little")
spans = [entry["data_offsets"] for name, entry in json.loads(data[8:size]).items() if "lora_B" in name]
print(0.9 if any(any(data[size + begin : size + end]) for begin, end in spans) else 0.5)
"""
"""A metric without imports, because the pages' searches start it dozens of times: is B zero everywhere, as in an untrained adapter?"""
PAGES = ["README.md", "choosing-compression.md", "dashboard.md", "merging.md", "policy.md", "storage.md"]


def environment(folder: Path) -> dict[str, str]:
    """What a fresh login has."""
    (folder / "home").mkdir(exist_ok=True)
    return {"HOME": str(folder / "home"), "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages take for granted: adapters, expert files, and an aggregator where `sentiment` was pushed."""
    folder = tmp_path_factory.mktemp("pages")
    start = builders.initial(2)
    builders.write_adapter(folder / "untrained", start)
    for number, name in enumerate(("my-lora", "other-lora", "berlin", "paris", "rome"), 1):
        builders.write_adapter(folder / name, builders.tuned(start, number))
    for name in ("berlin", "paris", "rome"):
        save_compressed(folder / name, folder / f"{name}.expert", PackSettings(init=str(folder / "untrained")))
    (folder / "measure.py").write_text(MEASURE)
    publish(folder)
    return folder


def publish(folder: Path) -> None:
    """Serve once, push one version of `sentiment`, stop. `shop-7` is a member with a grant of its own."""
    port = free_ports(1)[0]
    script = f"""set -euo pipefail
compeft keys new author.key; compeft keys new shop.key
compeft clients add author author.pub --role conductor --expert sentiment --data aggregator
compeft clients add shop-7 shop.pub --data aggregator
compeft serve --data aggregator --port {port} & server=$!
trap 'kill $server; wait $server' EXIT
compeft health localhost:{port} --wait 60
compeft push my-lora sentiment --aggregator 127.0.0.1:{port} --aggregator-key aggregator/aggregator.pub --key author.key --state-dir state
"""
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("author.key", "author.pub"):
        (folder / name).unlink()  # README makes them


@pytest.mark.timeout(280)
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_as_they_stand(page: str, prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder)
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    words = ["bash", "-c", script_of(path)]
    done = subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert done.stdout.count("== ") == script_of(path).count("echo '== ")
