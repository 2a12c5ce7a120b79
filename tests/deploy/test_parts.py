"""A machine that has the dependencies of one side only: `compeft` starts, with the commands of that side."""

import subprocess
import sys

CLIENT_ONLY = ("torch", "peft", "transformers", "safetensors")
SERVER_ONLY = ("sqlalchemy", "alembic", "structlog", "grpc_reflection", "jinja2")


def compeft(without: tuple[str, ...], *words: str) -> subprocess.CompletedProcess[str]:
    """Run `compeft` where the modules `without` cannot be imported."""
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({without!r})); "
        "from compeft_client.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    return subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)


def test_an_aggregator_without_torch_has_all_of_the_servers_commands() -> None:
    done = compeft(CLIENT_ONLY, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = {line.split()[0] for line in done.stdout.partition("Not installed:")[0].splitlines() if line.strip()}
    assert {"serve", "report", "health", "ca", "clients", "policy", "backup", "experts", "audit", "gc"} <= listed
    assert "merge" not in listed


def test_a_client_without_a_database_has_all_of_the_clients_commands() -> None:
    done = compeft(SERVER_ONLY, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = {line.split()[0] for line in done.stdout.partition("Not installed:")[0].splitlines() if line.strip()}
    assert {"join", "enroll", "renew", "pull", "watch", "merge", "pack"} <= listed
    assert "serve" not in listed


def test_a_command_that_is_left_out_says_what_to_install() -> None:
    done = compeft(CLIENT_ONLY, "merge")
    assert done.returncode == 2
    assert "safetensors" in done.stderr
    assert "pip install 'compeft[client]'" in done.stderr
