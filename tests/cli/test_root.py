"""`compeft` itself: the help by sections, what it imports, the version, completion, environment variables, and extras that are missing."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from compeft_client.cli.main import run
from compeft_client.cli.root import load, root
from compeft_client.cli.table import COMMANDS, EXTRAS, INCLUDES, SECTIONS

HEAVY = (
    "torch",
    "flwr",
    "sqlalchemy",
    "numba",
    "numpy",
    "grpc",
    "google.protobuf",
    "typer",
    "rich",
    "compeft_core",
    "compeft_proto",
)
COMPEFT = str(Path(sys.executable).parent / "compeft")


def without(extras: tuple[str, ...], *words: str) -> subprocess.CompletedProcess[str]:
    """Run `compeft` where no module of these extras can be imported."""
    modules = [name for extra in extras for name in EXTRAS[extra]]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({modules!r})); "
        "from compeft_client.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    return subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)


def everything(*words: str) -> str:
    done = without((), *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_and_version_import_no_numeric_or_network_package(words: list[str]) -> None:
    script = (
        "import sys; from compeft_client.cli.main import run; run(sys.argv[1:]); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_help_lists_every_command_in_its_section_with_its_whole_summary_in_80_columns() -> None:
    lines = everything("--help").splitlines()
    assert max(map(len, lines)) <= 80
    section = ""
    found = []
    for line in lines:
        section = line[:-1] if line[:-1] in SECTIONS else section
        found.append((section, line.strip()))
    for row in COMMANDS:
        assert (row.section, f"{row.name.ljust(18)}  {row.summary}".strip()) in found, row.name


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_every_row_of_the_table_names_a_command_whose_help_fits_80_columns(
    row: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = row.name  # type: ignore[attr-defined]
    assert run([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Usage: compeft {name} ")
    assert max(map(len, said.splitlines())) <= 80


def test_every_command_that_a_module_has_is_in_the_table() -> None:
    import importlib

    import typer.main

    modules = {row.module for row in COMMANDS}
    named = {(module, name) for module in modules for name in typer.main.get_group(importlib.import_module(module).app).commands}
    assert named == {(row.module, row.name) for row in COMMANDS}
    folders = ["client/compeft_client/cli", "server/compeft_server/cli"]
    files = {f"{folder.split('/')[1]}.cli.{path.stem}" for folder in folders for path in Path(folder).glob("*.py")}
    with_app = {name for name in files if hasattr(importlib.import_module(name), "app")}
    assert with_app == modules


def test_the_version_is_that_of_the_package() -> None:
    assert everything("--version") == f"compeft {version('compeft')}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_asks_compeft_for_completions(shell: str) -> None:
    assert "_COMPEFT_COMPLETE" in everything("completion", shell)


@pytest.mark.parametrize(
    ("words", "expected"),
    [("compeft ver", {"verify", "verify-merge"}), ("compeft experts pro", {"promote"}), ("compeft pack --den", {"--density"})],
)
def test_commands_and_options_are_completed(words: str, expected: set[str]) -> None:
    environment = os.environ | {"_COMPEFT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run([COMPEFT], env=environment, capture_output=True, text=True, check=False)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected


def test_the_environment_gives_data_and_site_and_the_help_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPEFT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COMPEFT_SITE", str(tmp_path / "site"))
    assert run(["keys", "new", str(tmp_path / "edge.key")]) == 0
    assert run(["clients", "add", "berlin", str(tmp_path / "edge.pub")]) == 0
    assert run(["clients", "list"]) == 0
    assert "berlin" in capsys.readouterr().out
    assert run(["pull", "x", "-o", str(tmp_path / "out")]) == 3
    assert f"{tmp_path / 'site'} is not a site folder" in capsys.readouterr().err
    assert run(["--help"]) == 0
    assert "COMPEFT_DATA" in capsys.readouterr().out


def options_of(command: click.Command) -> list[click.Option]:
    own = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    below = command.commands.values() if isinstance(command, click.Group) else []
    return own + [option for one in below for option in options_of(one)]


@pytest.mark.parametrize("row", [row for row in COMMANDS if row.name != "restore"], ids=lambda row: row.name)
def test_data_and_site_come_from_the_environment_in_every_command(row: object) -> None:
    for option in options_of(load(row)):  # type: ignore[arg-type]
        expected = {"--data": "COMPEFT_DATA", "--site": "COMPEFT_SITE"}.get(option.opts[0])
        assert expected is None or option.envvar == expected, option.opts


def test_a_typed_site_comes_before_a_data_directory_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPEFT_DATA", str(tmp_path / "data"))
    assert run(["health", "--site", str(tmp_path / "site")]) == 3
    assert str(tmp_path / "site") in capsys.readouterr().err
    assert run(["health", "--site", "x", "--data", "y"]) == 3
    assert "give one of them" in capsys.readouterr().err


def test_an_extra_that_is_missing_is_named_with_its_commands() -> None:
    done = without(("server",), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    last = done.stdout.partition("Not installed: pip install 'compeft[server]':")[2]
    assert max(map(len, done.stdout.splitlines())) <= 80
    for row in COMMANDS:
        assert (f"{row.name.ljust(18)}  {row.summary}" in last) == (row.extra == "server")


SEVERAL = [
    (("client",), "client", ["bench", "pool"]),
    (("client",), "client", ["pull", "x", "-o", "out"]),
    (("client",), "client", ["watch", "x", "-o", "out"]),
    (("client",), "client", ["tune", "x", "--eval", "true"]),
    (("client",), "client", ["merge", "a", "b", "-o", "out"]),
    (("client",), "client", ["blend", "a", "b", "--eval", "true", "-o", "out"]),
    (("server",), "server", ["serve", "--data", "data"]),
    (("server",), "server", ["experts", "list", "--data", "data"]),
    (("web",), "server", ["dashboard", "--data", "data"]),
]


@pytest.mark.parametrize(
    ("missing", "extra", "words"), SEVERAL, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_a_command_whose_extra_is_missing_names_it_in_one_line(
    missing: tuple[str, ...], extra: str, words: list[str], tmp_path: Path
) -> None:
    prepare = [w.replace("data", str(tmp_path / "data")) if w == "data" else w for w in words]
    run(["keys", "new", str(tmp_path / "k.key")])
    if "data" in words:
        run(["clients", "add", "a", str(tmp_path / "k.pub"), "--data", str(tmp_path / "data")])
    if words[0] in ("pull", "watch"):
        key, public = str(tmp_path / "k.key"), str(tmp_path / "k.pub")
        prepare += ["--aggregator", "127.0.0.1:9", "--aggregator-key", public, "--key", key, "--state-dir", str(tmp_path)]
    done = without(missing, *prepare)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"pip install 'compeft[{extra}]'" in done.stderr
    assert json.loads(without(missing, *prepare, "--format", "json").stderr)["error"] == "not_installed"


def installed(distribution: str, modules: dict[str, set[str]]) -> set[str]:
    """The modules of a distribution; where it is not installed here, the name that most distributions have for theirs."""
    name = canonicalize_name(distribution)
    return modules.get(name, {name.replace("-", "_")})


def test_the_table_of_extras_says_what_pyproject_installs() -> None:
    modules: dict[str, set[str]] = {}
    for module, distributions in packages_distributions().items():
        for distribution in distributions:
            modules.setdefault(canonicalize_name(distribution), set()).add(module)
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, names in EXTRAS.items():
        wanted = [Requirement(text) for text in extras[extra]]
        assert {part for one in wanted if one.name == "compeft" for part in one.extras} <= set(INCLUDES.get(extra, ()))
        for one in wanted:
            assert one.name == "compeft" or installed(one.name, modules) & set(names), (extra, one.name)


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["paint"]) == 2
    assert "No such command 'paint'" in capsys.readouterr().err
    assert root().get_command(click.Context(root()), "paint") is None
    assert run([]) == 2


def test_join_finds_flowers_program_beside_this_python(tmp_path: Path) -> None:
    """As `.venv/bin/compeft join` without activation: PATH does not name the folder."""
    run(["keys", "new", str(tmp_path / "k.key")])
    key, public = str(tmp_path / "k.key"), str(tmp_path / "k.pub")
    options = ["--aggregator", "127.0.0.1:9", "--aggregator-key", public, "--key", key, "--state-dir", str(tmp_path)]
    words = [COMPEFT, "join", "--superlink", "127.0.0.1:9", *options, "--superlink-ca", str(tmp_path / "none.crt")]
    done = subprocess.run(words, env={"PATH": str(tmp_path), "HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert "flower-supernode is neither" not in done.stderr
    assert "Starting Flower SuperNode" in done.stdout + done.stderr
