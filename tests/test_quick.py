"""`make quick` starts no process: the test files that the Makefile names for it import nothing that could."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
STARTS_PROCESSES = {
    "subprocess",
    "multiprocessing",
    "compeft_server.demo.processes",
    "tests.deploy.federation",
    "tests.e2e.installed",
}


def quick_files() -> list[Path]:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    found = re.search(r"(?m)^QUICK := (.*)$", text)
    assert found is not None
    places = [ROOT / word for word in found[1].split()]
    return sorted(file for place in places for file in (place.rglob("test_*.py") if place.is_dir() else [place]))


def imported_by(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_the_quick_tests_start_no_process() -> None:
    files = quick_files()
    assert len(files) > 40
    assert [file for file in files if not file.exists()] == []
    starting = {str(file.relative_to(ROOT)): imported_by(file) & STARTS_PROCESSES for file in files}
    assert {name: sorted(modules) for name, modules in starting.items() if modules} == {}
