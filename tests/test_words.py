"""Plain technical English in every string of the code: docstrings, errors and help say what a value is and what was expected."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("compeft_core", "proto/compeft_proto", "server/compeft_server", "client/compeft_client")
FOLDERS = (*PACKAGES, "benchmarks", "examples")
FILES = [file for package in FOLDERS for file in sorted((ROOT / package).rglob("*.py")) if "_pb2" not in file.name]
REFUSED = re.compile(r"\b(?:is|are) (?:no(?! longer)|none)\b|\bso (?:many|much)\b|\bwhat there is\b", re.IGNORECASE)
"""'x is no address' for 'invalid address x', 'there are none', 'as many as there are': write what is expected instead."""


def refused_in(file: Path) -> list[str]:
    """Line and words of every string in which one of the phrasings occurs."""
    strings = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)]
    texts = [(node.lineno, " ".join(node.value.split())) for node in strings if isinstance(node.value, str)]
    return [f"{line}: {text[max(0, m.start() - 30) : m.end() + 30]}" for line, text in texts for m in REFUSED.finditer(text)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_string_of_a_file_has_a_refused_phrasing(file: Path) -> None:
    assert refused_in(file) == []
