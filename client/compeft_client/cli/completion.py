"""`compeft completion`: prints the script that makes a shell complete commands and options."""

from typing import Annotated, Literal

import typer

app = typer.Typer()
VARIABLE = "_COMPEFT_COMPLETE"


@app.command("completion")
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="the shell that shall complete")],
) -> None:
    """Print the completion script of a shell. Command names are completed without loading any command.

    Examples: compeft completion bash > ~/.local/share/bash-completion/completions/compeft

    compeft completion zsh > ~/.zfunc/_compeft; compeft completion fish > ~/.config/fish/completions/compeft.fish
    """
    from click.shell_completion import get_completion_class

    from compeft_client.cli.root import PROGRAM, root

    kind = get_completion_class(shell)
    assert kind is not None, "click has bash, zsh and fish"  # noqa: S101
    typer.echo(kind(root(), {}, PROGRAM, VARIABLE).source())
