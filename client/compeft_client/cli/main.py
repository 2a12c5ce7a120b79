"""The `compeft` command: gathers the commands of the installed packages, and turns every typed error into one line and one exit code.

Commands live in the packages that do the work, and are found by the entry point group `compeft.commands`; so this file imports
none of them, and a machine with only the client's or only the server's dependencies has only the commands that they can run.
"""

import io
import json
import os
import sys
from importlib.metadata import entry_points
from typing import Any

import click
import typer
import typer.core

os.environ.setdefault(
    "GRPC_VERBOSITY", "NONE"
)  # read at grpc's import; what it would log is in our errors, or strangers' handshakes

from compeft_core.errors import CompeftError, FormatError, InputError, LimitError
from compeft_proto.errors import RefusedError, TransferError, TrustError

GROUP = "compeft.commands"
EXIT_CODES: dict[type[CompeftError], int] = {
    CompeftError: 1,
    InputError: 3,
    FormatError: 4,
    LimitError: 5,
    TrustError: 6,
    RefusedError: 7,
    TransferError: 8,
}
"""0: done; 1: any other failure; 2: wrong usage; 3 to 8: by the nearest class in this table; 130: interrupted."""
INTERRUPTED = 130
HELP = """Move fine-tuned experts in a fiftieth of the bytes.

Exit codes: 0 done, 1 failure, 2 wrong usage, 3 bad input, 4 malformed bytes, 5 over a limit, 6 not trusted, 7 refused by the
aggregator, 8 transfer failed, 130 interrupted. With --format json an error is one JSON object on standard error.
"""


def main() -> None:
    """Entry point of `compeft`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where the locale has no ×, a ? is better than a traceback
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; the exit code. Errors are printed, never raised."""
    try:
        result: Any = command()(arguments, prog_name="compeft", standalone_mode=False)
    except click.ClickException as error:
        _show(error, wants_json(arguments))
        return error.exit_code
    except CompeftError as error:
        print(describe(error, wants_json(arguments)), file=sys.stderr)
        return exit_code(error)
    except OSError as error:
        print(describe(of_system(error), wants_json(arguments)), file=sys.stderr)
        return EXIT_CODES[CompeftError]
    except (KeyboardInterrupt, click.Abort):
        result = INTERRUPTED
    code = result if isinstance(result, int) else 0
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code


def command() -> click.Command:
    """All commands of the installed packages, as one."""
    typer.core.HAS_RICH = False  # with it, typer's plain help has a backslash before every [
    app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
    app.callback()(lambda: None)
    for part in _load()[0]:
        app.add_typer(part)
    return typer.main.get_command(app)


def _load() -> tuple[list[typer.Typer], list[str]]:
    """The commands whose dependencies are installed, and the names of the modules that others lack."""
    parts: list[typer.Typer] = []
    absent: set[str] = set()
    for found in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        try:
            parts.append(found.load())
        except ModuleNotFoundError as error:
            name = (error.name or "").partition(".")[0]
            if not name or name.startswith("compeft"):
                raise
            absent.add(name)
    return parts, sorted(absent)


def exit_code(error: CompeftError) -> int:
    """The code of the nearest class in EXIT_CODES."""
    return next(EXIT_CODES[cls] for cls in type(error).__mro__ if cls in EXIT_CODES)


def describe(error: CompeftError, as_json: bool) -> str:
    """One line for people, or one JSON object for programs."""
    return json.dumps({"error": error.code, "message": str(error)}) if as_json else f"error: {error}"


def of_system(error: OSError) -> CompeftError:
    """What the operating system refused, where nobody who knows better caught it: a full disk, a folder that may not be written."""
    why = error.strerror or str(error)
    return CompeftError(f"{error.filename}: {why}" if error.filename else why)


def _show(error: click.ClickException, as_json: bool) -> None:
    """Wrong usage: click's own lines for people, or one JSON object."""
    if as_json:
        print(json.dumps({"error": "usage", "message": error.format_message()}), file=sys.stderr)
        return
    error.show()
    if isinstance(error, click.UsageError) and (absent := _load()[1]):
        extras = "pip install 'compeft[client]' or 'compeft[server]'"
        print(f"Commands that need {', '.join(absent)} are left out: {extras}", file=sys.stderr)


def wants_json(arguments: list[str]) -> bool:
    """Whether this command line asks for JSON."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return any(a == "--format=json" or (a, b) == ("--format", "json") for a, b in pairs)
