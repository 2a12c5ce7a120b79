"""The SDK's face: the names of `compeft_client`, where they come from, what importing them loads, and their examples."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import compeft_client
from tests.client import builders

NAMES = compeft_client.__all__
NO_TORCH = ["Edge", "EdgeClient", "Floor", "MergeRequest", "PackSettings", "PackageClient", "Trained", "edge_of"]
NO_TORCH += ["load_compressed", "merge_experts", "save_compressed"]


def module_of(name: str) -> str:
    return f"compeft_client.{compeft_client.MODULES[name]}"


def example_of(name: str) -> str:
    """The indented lines of a module's docstring from `from compeft_client import` on."""
    docstring = importlib.import_module(module_of(name)).__doc__ or ""
    found = re.search(r"(?m)^    from compeft_client import .*\n(?:(?:    .*)?\n)*", docstring + "\n")
    assert found is not None, f"{module_of(name)} begins without an example"
    return "\n".join(line[4:] for line in found[0].splitlines())


def loaded_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())


def test_the_names_are_sorted_and_each_has_its_module() -> None:
    assert sorted(NAMES) == NAMES
    assert set(compeft_client.MODULES) == set(NAMES)
    assert set(NAMES) <= set(dir(compeft_client))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_defined_and_documented_where_the_table_says(name: str) -> None:
    value = getattr(compeft_client, name)
    assert value.__module__ == module_of(name)
    assert value.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_the_module_of_a_name_begins_with_an_example_of_it(name: str) -> None:
    tree = ast.parse(example_of(name))
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert name in imported
    assert name in used
    assert imported <= set(NAMES)


def test_importing_the_package_loads_none_of_its_modules_and_nothing_heavy() -> None:
    loaded = loaded_by("import compeft_client")
    assert not {name for name in loaded if name.startswith(("compeft_client.", "compeft_core", "compeft_proto"))}
    assert not loaded & {"torch", "numpy", "numba", "grpc", "flwr"}


def test_what_needs_no_model_loads_no_torch_and_no_flower() -> None:
    loaded = loaded_by(f"from compeft_client import {', '.join(NO_TORCH)}")
    assert not loaded & {"torch", "peft", "flwr"}


def test_a_name_that_the_sdk_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        compeft_client.Nothing  # noqa: B018


@pytest.mark.parametrize("name", ["save_compressed", "merge_experts"])
def test_the_examples_of_packing_and_merging_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = builders.initial(2)
    builders.write_adapter(tmp_path / "untrained", start)
    builders.write_adapter(tmp_path / "my-lora", builders.tuned(start, 1))
    builders.write_adapter(tmp_path / "paris-lora", builders.tuned(start, 2))
    monkeypatch.chdir(tmp_path)
    compeft_client.save_compressed("./my-lora", "berlin.expert")
    lines = [line for line in example_of(name).splitlines() if "base_model" not in line]
    exec("\n".join(lines), {"Path": Path})
    assert (tmp_path / ("my.expert" if name == "save_compressed" else "both/adapter_model.safetensors")).exists()
