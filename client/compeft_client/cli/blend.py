"""`compeft blend`: the weights of a composition that your command likes best. Parses, searches, writes the composition, prints."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from compeft_client.cli.options import AsFormat
from compeft_client.cli.progress import watched
from compeft_client.merging.merge import MergeRequest, MergeResult, check_free, merge_experts
from compeft_client.packing.pack import PackSettings
from compeft_client.search.blend import Blend, BlendSettings, Weights, search
from compeft_client.search.measure import Journal, Measure, digest_of_weights, measure_by, write_untrained

METHOD = "task_arithmetic"
"""The merge method that composes as `ExpertPool` does: start + sum of weight times what each expert holds."""

app = typer.Typer()


@app.command("blend")
def blend_command(
    experts: Annotated[list[Path], typer.Argument(help="two or more expert files or PEFT directories that started alike")],
    evaluate: Annotated[
        str, typer.Option("--eval", help="command that measures a directory, {dir} in it; prints the metric last")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder to write; or a file, if the name ends in .expert")],
    steps: Annotated[int, typer.Option(help="compositions to try after the plain ones")] = 40,
    penalty: Annotated[float, typer.Option(help="times the mean magnitude of the weights, taken off the metric")] = 0.05,
    bound: Annotated[float, typer.Option(help="weights lie between this and its negative")] = 1.5,
    seed: Annotated[int, typer.Option(help="of the search")] = 0,
    init: Annotated[
        str | None, typer.Option(help="where the experts started: the untrained adapter's directory, or seed:N")
    ] = None,
    density: Annotated[float, typer.Option(help="fraction kept of directories, and of a result in a file")] = 0.05,
    force: Annotated[bool, typer.Option("--force", help="replace what is there")] = False,
    output_format: AsFormat = "text",
) -> None:
    """Find the weights of a composition by a metric on a few examples: no expert, each alone, the mean of all, then 40 others.

    The command gets each composition's directory in place of {dir} (and as COMPEFT_DIRECTORY) and prints the metric, higher is better,
    as its last line. What it said is kept in OUTPUT.blend.json: the same call again goes on where it was interrupted.

    Example: compeft blend berlin.expert paris.expert rome.expert --init ./untrained --eval "python measure.py {dir}" -o lisbon
    """
    settings, pack = BlendSettings(steps, penalty, bound, seed), PackSettings(density, init=init)
    check_free(output, force)
    measure = measure_by(evaluate)
    question = [evaluate, METHOD, density, init, *map(digest_of_weights, experts)]
    journal = Journal(output.with_suffix(".blend.json"), question)
    names = [str(path) for path in experts]
    with watched("blending", len(experts) + 2 + steps) as tick:

        def loss(weights: Weights) -> float:
            shares = [weights[name] for name in names]
            metric = journal.remembered(shares, lambda: _measured(experts, shares, pack, measure))
            tick(1)
            return -metric

        found = search(names, loss, settings)
    weights = list(found.weights.values())
    written = merge_experts(_request(experts, weights, pack), output, force=force) if any(weights) else None
    typer.echo(_json(found, written) if output_format == "json" else _text(found, written))


def _measured(experts: Sequence[Path], weights: Sequence[float], pack: PackSettings, measure: Measure) -> float:
    """The metric of one composition; all weights 0 stand for the base model."""
    with tempfile.TemporaryDirectory() as folder:
        directory, nothing = Path(folder) / "composed", not any(weights)
        merge_experts(_request(experts, [1.0] * len(experts) if nothing else weights, pack), directory)
        if nothing:
            write_untrained(directory, Path(folder) / "untrained")
            directory = Path(folder) / "untrained"
        return measure(directory)


def _request(experts: Sequence[Path], weights: Sequence[float], pack: PackSettings) -> MergeRequest:
    return MergeRequest(experts, METHOD, weights, 1.0, {}, None, pack)


def _json(found: Blend, written: MergeResult | None) -> str:
    trials = [{"weights": dict(trial.weights), "metric": -trial.loss} for trial in found.history]
    output = {"output": str(written.output), "bytes": written.bytes} if written else {"output": None, "bytes": 0}
    return json.dumps({"weights": dict(found.weights), "metric": -found.loss, **output, "trials": trials})


def _text(found: Blend, written: MergeResult | None) -> str:
    plain = found.history[: len(found.weights) + 2]
    labels = ["no expert", *(f"{name} alone" for name in found.weights), "mean of all"]
    lines = [f"{-trial.loss:>10.4f}  {label}" for trial, label in zip(plain, labels, strict=True)]
    lines.append(f"{-found.loss:>10.4f}  " + ", ".join(f"{name} {weight:g}" for name, weight in found.weights.items()))
    if written is None:
        lines.append("nothing tried is better than no expert: nothing is written")
    else:
        size = f"{written.parameters:,} parameters, {written.bytes:,} bytes"
        lines.append(f"{written.output}: {len(found.weights)} experts composed, {size}")
    return "\n".join(lines)
