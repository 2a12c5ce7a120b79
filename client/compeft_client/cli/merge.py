"""The command `compeft merge`: parses its options, calls one function, prints what came out."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from compeft_client.cli.options import AsFormat
from compeft_client.cli.pack_output import NO_QUALITY
from compeft_client.cli.progress import stages
from compeft_client.merging.merge import MergeRequest, MergeResult, merge_experts
from compeft_client.packing.pack import PackSettings
from compeft_core.errors import InputError

EQUAL = "equal"

app = typer.Typer()


@app.command()
def merge(
    experts: Annotated[list[Path], typer.Argument(help="two or more expert files or PEFT directories, of one base model")],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder to write; or a file, if the name ends in .expert")],
    method: Annotated[
        str,
        typer.Option(
            help="of products B A, for LoRAs of any ranks: core_average, core_ties, knots_ties, tsv_m, iso_c. Entry by entry, for experts "
            "that started from the same values: average, task_arithmetic, ties, dare, dare_ties, consensus, emr, sign_majority, "
            "trimmed_mean, median, krum, multi_krum"
        ),
    ] = "core_average",
    weights: Annotated[
        str, typer.Option(help="equal, or one number an expert: 3,1,1; task_arithmetic takes negative ones")
    ] = EQUAL,
    coefficient: Annotated[float, typer.Option(help="multiplies what was merged")] = 1.0,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="of the method, such as trim=0.2, byzantine=1, drop=0.9, seed=7, keep=0.2"),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="most columns of the merged factors; as many as it takes by default")] = None,
    init: Annotated[
        str | None, typer.Option(help="where the experts started: the untrained adapter's directory, or seed:N")
    ] = None,
    density: Annotated[
        float, typer.Option(help="fraction kept of what is compressed: directories merged by entries, and a result in a file")
    ] = 0.05,
    same_base: Annotated[bool, typer.Option("--same-base", help="the base models are one, though their names differ")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace what is there")] = False,
    output_format: AsFormat = "text",
) -> None:
    """Merge experts into one, without a server and without the base model.

    Example: compeft merge berlin.expert paris.expert -o both --method core_ties --weights 2,1
    """
    told = dict(_pair(text) for text in parameter or [])
    request = MergeRequest(
        experts, method, _weights(weights), coefficient, told, rank, PackSettings(density, init=init), same_base
    )
    with stages("merge") as tell:
        result = merge_experts(request, output, force=force, tell=tell)
    typer.echo(_said(request, result, output_format))


def _weights(text: str) -> list[float]:
    return [] if text == EQUAL else [_number("--weights", item) for item in text.split(",")]


def _pair(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--parameter is {text[:40]!r}, expected NAME=VALUE, such as trim=0.2")
    return name.strip(), _number(f"--parameter {name}", value)


def _number(what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"{what} has {text[:40]!r}, expected a number") from error
    if not math.isfinite(value):
        raise InputError(f"{what} has {text[:40]!r}, expected a finite number")
    return value


def _said(request: MergeRequest, result: MergeResult, output_format: str) -> str:
    if output_format == "json":
        return json.dumps(
            {
                "output": str(result.output),
                "method": request.method,
                "experts": [str(path) for path in request.paths],
                "parameters": result.parameters,
                "bytes": result.bytes,
                "ranks": list(result.ranks),
                "notes": list(result.notes),
            }
        )
    ranks = f", rank {' or '.join(map(str, result.ranks))}" if result.ranks else ""
    size = f"{result.parameters:,} parameters{ranks}, {result.bytes:,} bytes"
    head = f"{result.output}: {len(request.paths)} experts merged by {request.method}, {size}"
    return "\n".join([head, *result.notes, NO_QUALITY])
