"""One meaning a word: a class name occurs once in the product."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("compeft_core", "proto/compeft_proto", "server/compeft_server", "client/compeft_client")


def classes() -> dict[str, list[str]]:
    """Class name -> the files that define it; what protoc generates is left out."""
    found = defaultdict(list)
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            if "_pb2" in file.name:
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    found[node.name].append(str(file.relative_to(ROOT)))
    return found


def test_no_class_name_occurs_twice() -> None:
    found = classes()
    assert len(found) > 150
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
