"""The entry point of `compeft`: runs one command and turns every typed error into one line and one exit code.

The commands are in `table.py`. A command's module is imported when the command is run, so `compeft --help` loads none of them, and a
machine with the dependencies of the client or of the server only has the commands that they can run.
"""

import io
import json
import os
import sys
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import click

os.environ.setdefault(
    "GRPC_VERBOSITY", "NONE"
)  # read at grpc's import; what it would log is in our errors, or strangers' handshakes

from compeft_client.cli.root import PROGRAM, ROWS, root
from compeft_client.cli.table import extra_of

if TYPE_CHECKING:
    from compeft_core.errors import CompeftError

FAILED, USAGE, INTERRUPTED = 1, 2, 130
"""Exit codes that no error class has; `exit_codes.py` has the others."""


def main() -> None:
    """Entry point of `compeft`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where the locale has no ×, a ? is better than a traceback
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; the exit code. Errors are printed, never raised."""
    as_json = wants_json(arguments)
    try:
        result: Any = root()(arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        _print_usage_error(error, as_json)
        return error.exit_code
    except ModuleNotFoundError as error:
        print(_described("not_installed", _what_to_install(error, arguments), as_json), file=sys.stderr)
        return USAGE
    except OSError as error:
        print(_described("error", system_message(error), as_json), file=sys.stderr)
        return FAILED
    except (KeyboardInterrupt, click.Abort):
        result = INTERRUPTED
    except _root_error() as error:
        return _failed(error, as_json)
    code = result if isinstance(result, int) else 0
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code


def _root_error() -> "type[CompeftError]":
    """The root of the error tree. Python evaluates an `except` clause only when something was raised: a run without errors imports none."""
    from compeft_core.errors import CompeftError

    return CompeftError


def _failed(error: "CompeftError", as_json: bool) -> int:
    from compeft_client.cli.exit_codes import exit_code

    print(_described(error.code, str(error), as_json), file=sys.stderr)
    return exit_code(error)


def _described(code: str, message: str, as_json: bool) -> str:
    """One line for people, or one JSON object for programs."""
    return json.dumps({"error": code, "message": message}) if as_json else f"error: {message}"


def system_message(error: OSError) -> str:
    """One line about an error of the operating system that no command caught: a full disk, a folder that may not be written."""
    why = error.strerror or str(error)
    return f"{error.filename}: {why}" if error.filename else why


def _what_to_install(error: ModuleNotFoundError, arguments: list[str]) -> str:
    """The missing module and the extra that installs it. Errors: the error itself, if no extra has that module."""
    name = error.name or ""
    row = ROWS.get(next((word for word in arguments if not word.startswith("-")), ""))
    extra = extra_of(name)
    if row is None or not extra:
        raise error
    if row.extra in ("server", "demo"):  # flwr is in both extras: name the command's own
        extra = row.extra if extra in ("client", "server", "web", "demo") else extra
    return f"compeft {row.name} needs {name.partition('.')[0]}, which is not installed: pip install 'compeft[{extra}]'"


def _print_usage_error(error: click.ClickException, as_json: bool) -> None:
    """Click's own lines for people, or one JSON object."""
    if as_json:
        print(json.dumps({"error": "usage", "message": error.format_message()}), file=sys.stderr)
    else:
        error.show()


def wants_json(arguments: list[str]) -> bool:
    """Whether this command line asks for JSON."""
    pairs = zip_longest(arguments, arguments[1:])
    return any(a == "--format=json" or (a, b) == ("--format", "json") for a, b in pairs)
