"""The options and the step that `unpack` and `pull` share for `--as gguf`."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from compeft_core.errors import InputError

if TYPE_CHECKING:
    from compeft_client.serving.gguf_adapter import GgufWritten

As = Annotated[
    Literal["peft", "gguf"],
    typer.Option("--as", help="peft: a PEFT directory; gguf: one file for llama.cpp and Ollama (needs --base)"),
]
Base = Annotated[
    Path | None, typer.Option("--base", help="for --as gguf: the base model's folder (its config.json is read) or its GGUF file")
]
T = TypeVar("T")


def check_as(kind: str, base: Path | None) -> None:
    """Errors: InputError if `--as` and `--base` do not go together."""
    if kind == "gguf" and base is None:
        raise InputError("--as gguf needs --base: the base model's folder, or its GGUF file, such as --base SmolLM2.Q4_1.gguf")
    if kind == "peft" and base is not None:
        raise InputError(f"--base {base} is for --as gguf: leave it out, or say --as gguf")


def written_as_gguf(make: Callable[[Path], T], output: Path, base: Path) -> "tuple[T, GgufWritten]":
    """Let `make` write a PEFT directory somewhere temporary, and write its LoRA to `output`. Errors: those of `write_gguf` and `make`."""
    from compeft_client.serving.gguf_adapter import write_gguf
    from compeft_client.serving.gguf_base import read_base

    known = read_base(base)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "expert"
        made = make(folder)
        return made, write_gguf(folder, output, known)
