"""Commands that move experts without rounds: push, pull, watch. Each parses its options, calls one function, prints what came out."""

import json
import shlex
import signal
import tempfile
import threading
from _thread import start_new_thread
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compeft_client.cli.gguf import As, Base, check_as, written_as_gguf
from compeft_client.cli.options import AsFormat, EdgeConfig, takes_edge
from compeft_client.cli.pack import (
    Budget,
    CodecName,
    Density,
    Exact,
    Factor,
    Init,
    Quality,
    ScaleRule,
    Times,
    Trusted,
    WeighedBy,
    pack_settings,
)
from compeft_client.cli.progress import watched
from compeft_client.identity.edge_config import edge_of
from compeft_client.identity.key_files import load_public_key
from compeft_core.errors import InputError

if TYPE_CHECKING:
    from compeft_client.delivery.pull import Delivered
    from compeft_client.exchange.package_client import Measured
    from compeft_client.packing.pack import PackSettings

Name = Annotated[str, typer.Argument(metavar="NAME[@VERSION|@CHANNEL]", help="name of the expert; the newest by default")]
GoBack = Annotated[bool, typer.Option("--go-back", help="follow a channel that its operator rolled back")]
Patience = Annotated[float, typer.Option(min=0, help="seconds to try a failing transfer again")]
Value = Annotated[float | None, typer.Option(help="the same metric of the bare base model")]
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}

app = typer.Typer()


@app.command()
@takes_edge
def push(
    file: Annotated[Path, typer.Argument(help="an expert file, or a PEFT directory to pack and push")],
    name: Annotated[str, typer.Argument(help="name of the expert; the first push creates it")],
    edge: EdgeConfig,
    metric: Annotated[str | None, typer.Option(help="what the packed expert is worth on its task, NAME=VALUE")] = None,
    base_metric: Value = None,
    dense_metric: Annotated[float | None, typer.Option(help="the same metric of the uncompressed expert")] = None,
    examples: Annotated[int, typer.Option(min=0, help="test examples behind the metrics")] = 0,
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
    patience: Patience = 30.0,
    output_format: AsFormat = "text",
) -> None:
    """Publish a packed expert as the next version of NAME, signed with this client's key. A directory is packed first, as `compeft
    pack` does. The same file again adds no version.

    Examples: compeft push my.expert sentiment --site ~/.compeft --metric accuracy=0.91 --base-metric 0.70 --dense-metric 0.92

    compeft push ./my-lora sentiment --site ~/.compeft --times 100
    """
    from compeft_client.exchange.package_client import PackageClient

    us = edge_of({**edge, "patience-s": patience})
    measured = _measured(metric, base_metric, dense_metric)
    data = _file_or_packed(file, pack_settings(density, budget, scale, factor, init, codec, us.key, quality, times, exact), base)
    with PackageClient(us) as client:
        pushed = client.push(name, data, measured, examples, lambda total: watched("pushing", total))
    values = {"expert": name, "version": pushed.version, "sha256": pushed.sha256.hex(), "bytes": len(data), "new": pushed.new}
    text = f"{name} version {pushed.version}, {len(data):,} bytes, file {pushed.sha256.hex()[:16]}"
    _print(values, text if pushed.new else f"{text}: it was the newest already", output_format)


@app.command()
@takes_edge
def pull(
    name: Name,
    edge: EdgeConfig,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="folder to write: a PEFT directory; with --as gguf, the file")
    ] = None,
    kind: As = "peft",
    base: Base = None,
    packed: Annotated[Path | None, typer.Option(help="write the packed file itself, instead of a folder")] = None,
    publisher: Trusted = None,
    init: Init = None,
    version: Annotated[int | None, typer.Option(min=0, help="the version; the same as NAME@VERSION")] = None,
    go_back: GoBack = False,
    patience: Patience = 30.0,
    output_format: AsFormat = "text",
) -> None:
    """Fetch an expert, check every step and signature of it, and write it as a PEFT directory. Only what this client lacks travels.

    Examples: compeft pull sentiment -o ./expert --site ~/.compeft

    compeft pull sentiment@stable -o ./expert --site ~/.compeft --publisher berlin.pub

    compeft pull sentiment@3 --packed sentiment.expert --site ~/.compeft

    compeft pull sentiment -o sentiment.gguf --as gguf --base SmolLM2-135M-Instruct.Q4_1.gguf --site ~/.compeft
    """
    from compeft_client.delivery.pull import PullOptions, Reference, deliver, fetch_package, reference_of
    from compeft_client.durable_files import written_whole
    from compeft_client.exchange.package_client import PackageClient

    reference, us = reference_of(name), edge_of({**edge, "patience-s": patience})
    if version is not None:
        if reference != Reference(reference.expert):
            raise InputError(f"{name} and --version {version}: name one of them")
        reference = Reference(reference.expert, version)
    if (output is None) == (packed is None):
        raise InputError("missing output: expected -o DIRECTORY or --packed FILE")
    check_as(kind, base)
    if packed is not None and kind != "peft":
        raise InputError(f"--packed writes the packed file itself, --as {kind} another one: say -o FILE")
    options = PullOptions(load_public_key(publisher) if publisher else None, init, go_back)
    if output is not None:

        def make(folder: Path) -> "Delivered":
            return deliver(us, reference, folder, options, lambda total: watched("fetching", total))

        got = make(output) if base is None else written_as_gguf(make, output, base)[0]
        values = {"expert": got.expert, "version": got.version, "publisher": got.publisher, "directory": str(output)}
        by = f", published by {got.publisher}" if got.publisher else ""
        _print(values, f"{got.expert} version {got.version}, {got.parameters:,} parameters{by} -> {output}", output_format)
    elif packed is not None:
        with PackageClient(us) as client:
            fetched = fetch_package(client, reference, options, lambda total: watched("fetching", total))
        with written_whole(packed) as stream:
            stream.write(fetched.data)
        values = {"expert": fetched.expert, "version": fetched.version, "publisher": fetched.publisher, "file": str(packed)}
        text = f"{fetched.expert} version {fetched.version}, {len(fetched.data):,} bytes, published by {fetched.publisher} -> {packed}"
        _print(values, text, output_format)


@app.command()
@takes_edge
def watch(
    name: Name,
    output: Annotated[Path, typer.Option("-o", "--output", help="what to keep: a link to the newest version's folder")],
    edge: EdgeConfig,
    command: Annotated[str, typer.Option("--exec", metavar="COMMAND", help="run this after each change (no shell)")] = "",
    every: Annotated[str, typer.Option(help="how often to ask: 30s, 5m, 1h")] = "30s",
    once: Annotated[bool, typer.Option("--once", help="look once, then end")] = False,
    load: Annotated[
        list[str] | None,
        typer.Option(
            "--load", metavar="URL", help="load it there: http://HOST:PORT of a vLLM, sglang+http://HOST:PORT; may be repeated"
        ),
    ] = None,
    max_rank: Annotated[int, typer.Option(min=0, help="of --load: the engines' highest LoRA rank; 0: as they start")] = 0,
    publisher: Trusted = None,
    init: Init = None,
    go_back: GoBack = False,
    output_format: AsFormat = "text",
) -> None:
    """Keep a folder at an expert's newest version, or where a channel points, until SIGTERM or Ctrl-C.

    The folder's name is a link that is replaced at once, so a reader sees one version or the next, never half of one. COMMAND gets
    COMPEFT_EXPERT, COMPEFT_VERSION and COMPEFT_DIRECTORY in its environment. An aggregator that is away is asked again. With --load the
    engines that read the same folder get each version under a name of its own, such as sentiment@7-1a2b3c4d: all of them, or none.

    Example: compeft watch sentiment@stable -o /srv/experts/sentiment --site ~/.compeft --exec "systemctl reload my-server"

    Example: compeft watch sentiment@stable -o /srv/experts/sentiment --load http://127.0.0.1:8000 --load http://127.0.0.1:8001
    """
    from compeft_client.delivery import watch
    from compeft_client.delivery.pull import PullOptions, reference_of
    from compeft_client.exchange.package_client import PackageClient

    options = PullOptions(load_public_key(publisher) if publisher else None, init, go_back)
    loader = _loader(reference_of(name).expert, output, load, max_rank) if load else None
    settings = watch.WatchSettings(reference_of(name), output, _words(command), seconds_of(every), options, loader)
    us, stop = edge_of(edge), threading.Event()
    callbacks = watch.WatchCallbacks(
        lambda got: _print(
            {"expert": got.expert, "version": got.version, "publisher": got.publisher, "directory": str(output)},
            f"{got.expert} version {got.version} -> {output}",
            output_format,
        ),
        lambda trouble: typer.echo(trouble, err=True),
    )
    if not once:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: start_new_thread(stop.set, ()))  # `set` takes a lock that we may hold just now
        watch.watch(us, settings, stop, callbacks)
        return
    watch.check_directory(output)
    with PackageClient(us) as client:
        if not watch.follow(client, us, settings, stop, callbacks):
            raise typer.Exit(1)


def _loader(expert: str, output: Path, urls: Sequence[str], max_rank: int) -> "Callable[[int, str, Path], Sequence[str]]":
    """What loads a version into the engines at these addresses. Its state lies beside the folder. Errors: InputError."""
    from compeft_client.serving.engine_fit import EngineLimits, fit
    from compeft_client.serving.model_name import fixed_name
    from compeft_client.serving.replicas import LoadSettings, replica_of, roll_out

    settings = LoadSettings([replica_of(url) for url in dict.fromkeys(urls)])
    limits = EngineLimits(" and ".join(sorted({replica.kind for replica in settings.replicas})), max_rank)

    def load(version: int, digest: str, directory: Path) -> list[str]:
        name = fixed_name(expert, version, bytes.fromhex(digest))
        fit(directory, limits, name)
        return roll_out(settings, output.parent / f".{output.name}.loaded", name, directory)

    return load


def seconds_of(text: str) -> float:
    """`30s`, `5m`, `1h` or plain seconds. Errors: InputError."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in SECONDS else (text, "s")
    try:
        seconds = float(number) * SECONDS[unit]
    except ValueError as error:
        raise InputError(f"invalid duration {text!r}: expected seconds or a unit, such as 30s, 5m or 1h") from error
    if not 0 < seconds < float("inf"):
        raise InputError(f"invalid duration {text!r}: expected more than 0 and finite, such as 30s, 5m or 1h")
    return seconds


def _measured(metric: str | None, base: float | None, dense: float | None) -> "Sequence[Measured]":
    from compeft_client.exchange.package_client import Measured

    if metric is None:
        if base is not None or dense is not None:
            raise InputError("--base-metric and --dense-metric need --metric NAME=VALUE beside them")
        return []
    what, _, text = metric.partition("=")
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"invalid --metric {metric!r}: expected NAME=VALUE, such as accuracy=0.91") from error
    found = (("synced", value), ("base", base), ("dense", dense))
    return [Measured(arm, what, number) for arm, number in found if number is not None]


def _file_or_packed(path: Path, settings: "PackSettings", base: str | None) -> bytes:
    """The bytes of an expert file, or what a directory packs to."""
    from compeft_client.checkpoints.source import read_source
    from compeft_client.cli.base import statements_for, statistics_for
    from compeft_client.packing.expert_file import is_expert_file, open_expert
    from compeft_client.packing.pack import check_payloads, save_compressed

    if is_expert_file(path):
        check_payloads(open_expert(path))
        return path.read_bytes()
    source = read_source(path)
    settings = replace(settings, base=statistics_for(source, settings, base), statements=statements_for(base))
    with tempfile.TemporaryDirectory() as place, watched("packing", source.size) as tick:
        file = Path(place) / "packed.expert"
        for note in save_compressed(path, file, settings, progress=tick).notes:
            typer.echo(note, err=True)
        return file.read_bytes()


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise InputError(f"invalid --exec {command!r}: expected a command in shell quoting: {error}") from error


def _print(values: dict[str, object], text: str, output_format: str) -> None:
    typer.echo(json.dumps(values) if output_format == "json" else text)
