"""`compeft base-stats`, and which base's statistics `pack` and `push` weigh modules by."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compeft_client.checkpoints.base_model_digest import header_of, weights_digest
from compeft_client.checkpoints.local_hub import cached_base
from compeft_client.cli.options import AsFormat
from compeft_client.cli.progress import watched
from compeft_client.durable_files import read_file
from compeft_client.packing.base_statistics import BaseStatistics, cache_path, product_weights, read_statistics, write_statistics
from compeft_client.packing.plan import product_modules
from compeft_core.budget import bytes_of
from compeft_core.errors import CompeftError, InputError

if TYPE_CHECKING:
    from compeft_client.checkpoints.source import Source
    from compeft_client.packing.pack import PackSettings

AUTOMATIC_BYTES = 2**30
"""Bases of more bytes are measured only when asked for: it would take minutes."""
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
"""Endings of the architectures that are measured without being asked for: on encoders it did not help (docs/benchmarks/product.md)."""
NONE = "none"

app = typer.Typer()


@app.command("base-stats")
def base_stats(
    directory: Annotated[Path, typer.Argument(help="the base model's folder, with its tokenizer")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="the file; a cache that `pack` looks into by default")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="most bytes of memory, such as 12GB; half of the machine's by default")
    ] = None,
    output_format: AsFormat = "text",
) -> None:
    """Measure how much a base model's output minds an error in each module: once a base, by one pass over a text that comes along.

    `compeft pack --base` then gives more bytes to the modules that matter. Unpacking needs neither the base nor this file.

    Example: compeft base-stats ./base-model -o base.stats.json
    """
    found = measured(directory, output, bytes_of(memory) if memory else 0)
    path = output or cache_path(found.weights_digest)
    digest = found.weights_digest.hex()
    values = {"file": str(path), "base": found.base, "weights_digest": digest, "modules": len(found.modules)}
    text = f"{path}: {len(found.modules):,} modules of {found.base}, weights digest {digest[:16]}"
    typer.echo(json.dumps(values) if output_format == "json" else text)


def measured(directory: Path, output: Path | None = None, memory: int = 0, name: str = "") -> BaseStatistics:
    """The statistics of a base model, measured and written to a file, or to the cache. Errors: InputError, LimitError."""
    from compeft_client.models.measure_base import measure_base, passages

    with watched("measuring the base model, once", len(passages())) as tick:
        found = measure_base(directory, name=name, memory=memory, progress=tick)
    write_statistics(output or cache_path(found.weights_digest), found)
    return found


def statements_for(base: str | None) -> dict[str, str]:
    """What the expert file says of its base where --base names its folder: digests of its weights and of its tokenizer. Errors: those of
    `served_base`.
    """
    from compeft_client.serving.served_base import served_base, statements_of

    return statements_of(served_base(Path(base))) if base and base != NONE and Path(base).is_dir() else {}


def statistics_for(source: "Source", settings: "PackSettings", base: str | None) -> BaseStatistics | None:
    """What --base asks for: a base's folder, a file of statistics, `none`, or by default the local Hugging Face cache's base, if it is
    there, is a causal language model, is not large, and has the adapter's modules. Errors: InputError, FormatError, LimitError.
    """
    if base == NONE:
        return None
    if base is None:
        return None if settings.is_ternary or settings.exact else _automatic(source)
    path = Path(base)
    if path.is_file():
        return read_statistics(path)
    if not path.is_dir():
        raise InputError(
            f"--base {base} is neither a folder nor a file: give the base model's folder, or a file of compeft base-stats"
        )
    return _known(path) or measured(path)


def _known(folder: Path) -> BaseStatistics | None:
    """What the cache has of the base in a folder."""
    path = cache_path(weights_digest(folder))
    return read_statistics(path) if path.exists() else None


def _automatic(source: "Source") -> BaseStatistics | None:
    modules = [module for module, _ in product_modules(source)]
    revision = source.fields.get("revision")
    folder = cached_base(source.base_model, revision if isinstance(revision, str) else None) if modules else None
    if folder is None:
        return None
    try:
        if not _is_language_model(folder) or sum(t.bytes for t in header_of(folder).tensors.values()) > AUTOMATIC_BYTES:
            return None
        found = _known(folder)
        if found is None and find_spec("torch") and find_spec("transformers"):
            found = measured(folder, name=source.base_model)
        if found is not None:
            product_weights(found, modules)
        return found
    except CompeftError as error:
        typer.echo(f"packed without the base model: {error}", err=True)
        return None


def _is_language_model(folder: Path) -> bool:
    try:
        names = json.loads(read_file(folder / "config.json"))["architectures"]
        return any(str(name).endswith(LANGUAGE_MODELS) for name in names)
    except (ValueError, KeyError, TypeError):  # another kind of configuration
        return False
