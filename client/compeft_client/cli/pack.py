"""Commands for one expert and no server: pack, unpack, inspect, verify, diff. Each parses, calls one function, prints."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from compeft_client.checkpoints.source import read_source
from compeft_client.cli import pack_output as texts
from compeft_client.cli.base import statements_for, statistics_for
from compeft_client.cli.gguf import As, Base, check_as, written_as_gguf
from compeft_client.cli.options import AsFormat
from compeft_client.cli.progress import watched
from compeft_client.identity.key_files import load_public_key, load_signing_key
from compeft_client.packing.diff import diff as compare
from compeft_client.packing.expert_file import ExpertFile, is_expert_file, open_expert
from compeft_client.packing.inspect_costs import inspect_directory
from compeft_client.packing.own_rank import Rank
from compeft_client.packing.pack import MAX_PARAMETERS, TIMES, PackSettings, check_payloads, save_compressed
from compeft_client.packing.pack import unpack as write_directory
from compeft_core import Codec
from compeft_core.budget import HIGHEST, bytes_of
from compeft_core.errors import InputError
from compeft_proto.keys import SigningKey

Init = Annotated[
    str | None, typer.Option(help="where it started: the untrained adapter's (or base model's) directory, or seed:N")
]
Trusted = Annotated[Path | None, typer.Option(help="public key of the signer; nothing is written unless it signed")]
Force = Annotated[bool, typer.Option("--force", help="replace what is there")]


FILL = math.inf
"""`--density auto`: as much as the budget holds."""


def _density(text: str) -> float | None:
    """A density, or FILL for `auto`. Errors: BadParameter."""
    try:
        return FILL if text == "auto" else float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text[:40]!a} is neither a fraction, such as 0.05, nor auto") from error


Density = Annotated[
    float | None,
    typer.Option(
        parser=_density,
        metavar="FRACTION|auto",
        help="keep this fraction of the changes as ternary values, above 0 and at most 1, instead of coding products; auto: as much as "
        "--budget holds",
    ),
]
Budget = Annotated[str | None, typer.Option(help="most bytes of the file, such as 4kB")]
Scale = Literal["auto", "alpha_sigma", "bounded_norm", "mean_magnitude", "norm"]
ScaleRule = Annotated[Scale | None, typer.Option(help="ternary values: the rule for their one magnitude")]
Factor = Annotated[float | None, typer.Option(help="ternary values: multiplies the rule's scale; for auto, replaces its factor")]
CodecName = Annotated[
    Codec | None,
    typer.Option(help="ternary values: context takes the fewest bytes, rice and rice4 the least time"),
]
Quality = Annotated[float | None, typer.Option(help="how much of the products is kept: their cos^2, above 0 and below 1")]
Times = Annotated[
    float | None,
    typer.Option(help=f"how many times fewer bytes than the factors take as bfloat16, such as 200; {TIMES:g} by default"),
]

Exact = Annotated[bool, typer.Option("--exact", help="keep every bit: code what changed since --init DIR, an earlier checkpoint")]

WeighedBy = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="DIR|FILE|none",
        help="the base model, or a file of compeft base-stats: modules whose errors it minds get more bytes; by default a language "
        "model of the local Hugging Face cache",
    ),
]

app = typer.Typer()


def pack_settings(
    density: float | None,
    budget: str | None,
    scale: Scale | None,
    factor: float | None,
    init: str | None,
    codec: Codec | None,
    key: SigningKey | None,
    quality: float | None = None,
    times: float | None = None,
    exact: bool = False,
) -> PackSettings:
    """What the options of `pack` and `push` say. Errors: InputError."""
    if density == FILL and budget is None:
        raise InputError(
            "--density auto needs --budget SIZE to fill; for the fewest bytes that keep the metric: compeft tune DIRECTORY --eval ..."
        )
    most = bytes_of(budget) if budget else None
    settings = PackSettings(
        HIGHEST if density == FILL else density, scale, factor, init, most, codec, key, quality, times, exact=exact
    )
    settings.check()
    return settings


@app.command()
def pack(
    directory: Annotated[Path, typer.Argument(help="a PEFT directory, or a full checkpoint (with --init BASE)")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="the file; DIRECTORY's name and .expert by default")
    ] = None,
    quality: Quality = None,
    budget: Budget = None,
    times: Times = None,
    base: WeighedBy = None,
    density: Density = None,
    scale: ScaleRule = None,
    factor: Factor = None,
    init: Init = None,
    codec: CodecName = None,
    exact: Exact = False,
    sign: Annotated[Path | None, typer.Option(help="private key to sign with, from `compeft keys new`")] = None,
    force: Force = False,
    output_format: AsFormat = "text",
) -> None:
    """Pack a fine-tuned expert into one small file.

    LoRA's factors are coded by what they do, the product B A, and nothing else needs to be known. With --density, --scale or --codec
    what changed since --init is coded as ternary values instead (the method of the ComPEFT paper).

    Example: compeft pack ./my-lora -o my.expert --sign me.key

    Example: compeft pack ./my-lora --times 200

    Example: compeft pack ./my-lora --times 400 --base ./base-model

    Example: compeft pack ./my-lora --density 0.05 --init ./my-lora-untrained

    Example: compeft pack ./checkpoint-200 --exact --init ./checkpoint-100
    """
    file = output or Path(f"{directory.resolve().name}.expert")
    key = load_signing_key(sign) if sign else None
    settings = pack_settings(density, budget, scale, factor, init, codec, key, quality, times, exact)
    source = read_source(directory)
    settings = replace(settings, base=statistics_for(source, settings, base), statements=statements_for(base))
    settings.check()
    with watched("packing", source.size) as tick:
        packed = save_compressed(directory, file, settings, force=force, progress=tick)
    typer.echo(texts.packed(file, packed, key.keyid if key else None, output_format))


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(help="an expert file")],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder to write; with --as gguf, the file")],
    key: Trusted = None,
    init: Init = None,
    kind: As = "peft",
    base: Base = None,
    max_parameters: Annotated[int, typer.Option(help="refuse a file that would unpack to more")] = MAX_PARAMETERS,
    rank: Annotated[
        Rank, typer.Option(help="of LoRA's products: keep, as they were packed, or own, the ranks that packing kept")
    ] = "keep",
    force: Force = False,
    output_format: AsFormat = "text",
) -> None:
    """Write a packed expert out as the directory it was packed from: PEFT and serving stacks load it. Or as GGUF, for llama.cpp.

    Example: compeft unpack my.expert -o ./my-lora --key me.pub

    Example: compeft unpack my.expert -o my-lora.gguf --as gguf --base SmolLM2-135M-Instruct.Q4_1.gguf

    Example: compeft unpack my.expert -o ./my-lora --rank own
    """
    trusted = load_public_key(key) if key else None
    check_as(kind, base)
    with watched("unpacking", open_expert(file, trusted).manifest.size) as tick:

        def make(folder: Path) -> ExpertFile:
            return write_directory(
                file, folder, init=init, key=trusted, force=force, max_parameters=max_parameters, rank=rank, progress=tick
            )

        if base is None:
            typer.echo(texts.unpacked(make(output), output, output_format))
            return
        if output.exists() and not force:
            raise InputError(f"{output} exists already: give --force to replace it, or -o for another name")
        opened, written = written_as_gguf(make, output, base)
    typer.echo(texts.unpacked_gguf(opened, output, written.modules, written.total_bytes, output_format))


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="an expert file, or a directory that could be packed")],
    init: Init = None,
    output_format: AsFormat = "text",
) -> None:
    """Show what costs bytes: in a directory before anything is packed, or in an expert file.

    Example: compeft inspect ./my-lora
    """
    if is_expert_file(path):
        typer.echo(texts.file(open_expert(path), output_format))
        return
    with watched("measuring", read_source(path).size) as tick:
        found = inspect_directory(path, init, tick)
    typer.echo(texts.directory(found, init is not None, output_format))


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="an expert file")],
    key: Annotated[Path, typer.Option(help="public key of the signer you trust")],
    output_format: AsFormat = "text",
) -> None:
    """Check that a key signed an expert file, and that every byte of it is what was signed.

    Example: compeft verify my.expert --key me.pub
    """
    opened = open_expert(file, load_public_key(key))
    check_payloads(opened)
    typer.echo(texts.verified(opened, load_public_key(key).keyid, output_format))


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="an expert file or a directory")],
    b: Annotated[Path, typer.Argument(help="another one")],
    init: Init = None,
    output_format: AsFormat = "text",
) -> None:
    """Compare what two experts changed: cosine, norms, and where and with which sign they moved.

    Example: compeft diff berlin.expert paris.expert
    """
    typer.echo(texts.difference(compare(a, b, init), output_format))
