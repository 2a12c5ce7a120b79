"""`compeft tune`: raise compression step by step until the task metric says stop. Parses, searches, prints, writes."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from compeft_client.cli.options import AsFormat
from compeft_client.merging.merge import MergeRequest, merge_experts
from compeft_client.packing.pack import PackSettings, save_compressed
from compeft_client.search.measure import Measure, measure_by
from compeft_client.search.tune import Curve, Ladder, Point, Search, ladder_of, tune
from compeft_client.search.tune_chart import picture
from compeft_core.errors import InputError

COMPOSITION = "core_average"
"""A merge method for experts of any ranks that needs to know nothing of where they started."""

app = typer.Typer()


@app.command("tune")
def tune_command(
    directory: Annotated[Path, typer.Argument(help="a PEFT directory, or a full checkpoint (with --init BASE)")],
    evaluate: Annotated[
        str, typer.Option("--eval", help="command that measures a directory, {dir} in it; prints the metric last")
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="file for the chosen expert; DIRECTORY.expert")] = None,
    floor: Annotated[float, typer.Option(min=0, max=1, help="part of the gain over the base model to keep")] = 0.99,
    init: Annotated[str | None, typer.Option(help="where it started: the untrained adapter's directory, or seed:N")] = None,
    by: Annotated[
        Ladder | None, typer.Option(help="what falls: quality (LoRA's products, the default) or density (ternary changes)")
    ] = None,
    beside: Annotated[
        list[Path] | None, typer.Option("--with", help="experts to compose the chosen one with, and measure")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the output file")] = False,
    output_format: AsFormat = "text",
) -> None:
    """Find the fewest bytes that keep the metric: base only, uncompressed, then packed at quality 0.9, 0.7, 0.5 ... and in between.

    The command gets each directory in place of {dir} (and as COMPEFT_DIRECTORY) and prints the metric, higher is better, as its last
    line. What it said is kept in OUTPUT.tune.json: the same call again goes on where it was interrupted. OUTPUT.svg shows the curve.
    Ends with code 1 where no step keeps enough. Start with one small task; then compose: --with OTHER.expert measures the mean with
    others, packed and unpacked.

    Example: compeft tune ./my-lora --eval "python measure.py {dir}" --floor 0.98 --with berlin.expert

    Example: compeft tune ./my-lora --by density --init ./untrained --eval "python measure.py {dir}"
    """
    file = output or Path(f"{directory.resolve().name}.expert")
    if file.exists() and not force:
        raise InputError(f"{file} exists already: give --force to replace it, or -o for another name")
    measure, journal = measure_by(evaluate), file.with_suffix(".tune.json")
    search = Search(directory, init, by or ladder_of(directory), floor, measure, journal, evaluate)
    curve = tune(search, _say if output_format == "text" else lambda _: None)
    file.with_suffix(".svg").write_text(picture(curve, directory.resolve().name), encoding="utf-8")
    chosen = curve.chosen
    if chosen is not None:
        save_compressed(directory, file, search.settings(chosen.step), force=force)
    composed = _composed(directory, file, init, beside or [], measure) if chosen else None
    typer.echo(_json(curve, search.ladder, file, composed) if output_format == "json" else _text(curve, file, composed))
    if chosen is None:
        raise typer.Exit(1)


def _composed(directory: Path, file: Path, init: str | None, beside: Sequence[Path], measure: Measure) -> dict[str, float] | None:
    """The metric of the mean with other experts, as products of factors: of this one as it is, and of what packing makes of it."""
    if not beside:
        return None
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for arm, own in (("uncompressed", directory), ("compressed", file)):
            request = MergeRequest([own, *beside], COMPOSITION, [], 1.0, {}, None, PackSettings(init=init))
            merge_experts(request, Path(folder) / arm)
            found[arm] = measure(Path(folder) / arm)
    return found


def _say(point: Point) -> None:
    typer.echo(f"{point.arm:>14}  {point.bytes:>12,} bytes  metric {point.metric:.4f}", err=True)


def _json(curve: Curve, ladder: Ladder, file: Path, composed: dict[str, float] | None) -> str:
    rows = [asdict(p) | {"retained": curve.retained(p)} for p in (curve.base, curve.original, *curve.packed)]
    chosen = asdict(curve.chosen) if curve.chosen else None
    named = str(file) if curve.chosen else None
    return json.dumps({"by": ladder, "floor": curve.floor, "points": rows, "chosen": chosen, "file": named, "composed": composed})


def _text(curve: Curve, file: Path, composed: dict[str, float] | None) -> str:
    lines = [f"{'':>14}  {'bytes':>12}  {'fewer':>8}  {'cos^2':>5}  {'metric':>8}  {'gain kept':>9}"]
    for p in (curve.base, curve.original, *curve.packed):
        fewer = f"{curve.original.bytes / p.bytes:.1f}x" if p.bytes else "-"
        mark = "  <- chosen" if p is curve.chosen else ""
        lines.append(
            f"{p.arm:>14}  {p.bytes:>12,}  {fewer:>8}  {p.kept:>5.2f}  {p.metric:>8.4f}  {curve.retained(p):>9.3f}{mark}"
        )
    if curve.chosen is None:
        lines.append(f"no step keeps {curve.floor:g} of the gain: nothing is written; lower --floor, or pack it by hand")
    else:
        lines.append(f"{file}: {curve.chosen.bytes:,} bytes; the curve is in {file.with_suffix('.svg')}")
    if composed:
        lines.append(
            f"composed with others: {composed['compressed']:.4f} compressed, {composed['uncompressed']:.4f} uncompressed"
        )
    return "\n".join(lines)
