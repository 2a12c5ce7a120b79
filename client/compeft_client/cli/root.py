"""The root of the command line: a click group that lists commands from the table and imports a command's module only to use it."""

import importlib
import sys

import click
from click.shell_completion import CompletionItem

from compeft_client.cli.table import COMMANDS, SECTIONS, CommandRow, missing_module

HELP = """Move fine-tuned experts in a fiftieth of the bytes.

Exit codes: 0 done, 1 failure, 2 wrong usage or an extra is not installed, 3 bad input, 4 malformed bytes, 5 over a limit,
6 not trusted, 7 refused by the aggregator, 8 transfer failed, 130 interrupted. With --format json an error is one JSON object on
standard error.

Environment: COMPEFT_DATA stands for --data, COMPEFT_SITE for --site, wherever a command takes them. Shell completion:
compeft completion --help.
"""
ROWS = {row.name: row for row in COMMANDS}
PROGRAM = "compeft"
COMPILING = "compiling kernels for this processor, once: up to a minute; `compeft warm` does it ahead"
WIDTH = max(map(len, ROWS))


class Root(click.Group):
    """`compeft`. Help, completion of command names and the version need no command's module."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, installed or not."""
        return list(ROWS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command; None if no command has that name. Errors: ModuleNotFoundError if its extra is missing."""
        row = ROWS.get(cmd_name)
        return None if row is None else load(row)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete command names from the table, then options as click does."""
        found = [CompletionItem(row.name, help=row.summary) for row in COMMANDS if row.name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by section, each with its whole summary; then those whose extra is missing, with what installs it."""
        extras = {row.extra for row in COMMANDS if row.extra}
        absent = {extra for extra in sorted(extras) if missing_module(extra)}
        sections = {name: [row for row in COMMANDS if row.section == name and row.extra not in absent] for name in SECTIONS}
        for extra in sorted(absent):
            sections[f"Not installed: pip install 'compeft[{extra}]'"] = [row for row in COMMANDS if row.extra == extra]
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl([(row.name.ljust(WIDTH), row.summary) for row in rows])


def load(row: CommandRow) -> click.Command:
    """The command of a row. Errors: ModuleNotFoundError."""
    import typer.core

    typer.core.HAS_RICH = False  # with it, typer's plain help has a backslash before every [
    app = importlib.import_module(row.module).app
    if "numba" in sys.modules:
        from compeft_core.warm import say_when_compiling

        say_when_compiling(lambda: print(COMPILING, file=sys.stderr))
    command = typer.main.get_group(app).commands[row.name]
    command.short_help = row.summary
    return command


def root() -> Root:
    """The command line without any command imported."""
    version = click.version_option(package_name=PROGRAM, prog_name=PROGRAM, message="%(prog)s %(version)s")
    group: Root = version(Root(PROGRAM, help=HELP, no_args_is_help=True))
    return group
