"""Pack an expert into one small file, and get it back: `save_compressed`, `load_compressed`, `unpack`, `from_compressed`.

    from compeft_client import PackSettings, from_compressed, load_compressed, save_compressed

    save_compressed("./my-lora", "my.expert", PackSettings(density=0.05, init="./untrained"))
    loaded = load_compressed("my.expert", init="./untrained")       # name -> array, and the configuration
    model = from_compressed(base_model, "my.expert", init="./untrained")     # a PeftModel

No server, no account and, but for `from_compressed`, no torch. What comes back has the names, types and configuration that went in;
the values are where the expert started plus what compression kept of the way it went.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from compeft_client.checkpoints.initial_values import Start, read_start
from compeft_client.checkpoints.source import Source, read_source
from compeft_client.checkpoints.source_check import notes_of
from compeft_client.durable_files import written_whole
from compeft_client.packing.base_statistics import product_weights
from compeft_client.packing.exact_codec import plan_exact
from compeft_client.packing.expert_file import write_expert
from compeft_client.packing.part_codec import CodedPart, Progress, code, code_products, silent, tensors_in
from compeft_client.packing.plan import PlannedPart, plan
from compeft_client.packing.product_codec import NOTHING, products_of, sides
from compeft_client.packing.settings import DENSITY, TIMES, PackSettings
from compeft_client.packing.unpack import (
    MAX_PARAMETERS,
    Loaded,
    check_payloads,
    from_compressed,
    load_compressed,
    load_tensors,
    pieces,
    unpack,
)
from compeft_core import Compression
from compeft_core.budget import filled
from compeft_core.errors import InputError
from compeft_core.product import LowRank, ProductSettings
from compeft_proto.expert_manifest import FilePart, Manifest

__all__ = [
    "DENSITY",
    "MAX_PARAMETERS",
    "TIMES",
    "Loaded",
    "PackSettings",
    "Packed",
    "check_payloads",
    "code_parts",
    "code_source",
    "from_compressed",
    "load_compressed",
    "load_tensors",
    "manifest_of",
    "save_compressed",
    "unpack",
]

SMALL_BYTES, SMALL_TIMES = 4096, 4.0
"""Products that would take fewer bytes than that get as many, but stay SMALL_TIMES below bfloat16: side information dominates there."""
LOW_QUALITY = 0.2
"""The quality (of the weighted dW) from which on every expert of the evidence kept most of its gain (docs/benchmarks/product.jsonl).
Packing warns below it.
"""
NO_STATEMENTS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Packed:
    """What packing made. `stored_bytes` are those of the tensors before, `bf16_bytes` what they take as bfloat16; `notes`: what its
    publisher should know, a line each.
    """

    source: Source
    parts: Sequence[CodedPart]
    compression: Compression
    total_bytes: int
    stored_bytes: int
    bf16_bytes: int
    notes: Sequence[str] = ()

    @property
    def cosine(self) -> float:
        """Of the products, or else of the ternary changes, and what was kept of them; 1 if nothing is compressed."""
        return next((c.cosine for c in self.parts if c.encoded or c.planned.compression == self.compression), 1.0)


def save_compressed(
    directory: Path | str,
    file: Path | str,
    settings: PackSettings = PackSettings(),  # noqa: B008  # frozen
    *,
    force: bool = False,
    progress: Progress = silent,
) -> Packed:
    """Pack a PEFT directory, or a full checkpoint and its base, into one file. An interrupted call leaves no file.

    Errors: InputError if the file is there and not `force`; InputError; NotFiniteError; FormatError for damaged input.
    """
    file = Path(file)
    if file.exists() and not force:
        raise InputError(f"{file} exists already: give --force to replace it, or -o for another name")
    source = read_source(Path(directory))
    notes = notes_of(source)
    settings.check()
    coded, settings = code_source(source, settings, progress)
    notes = [*notes, *_base_notes(coded, settings), *_quality_notes(coded)]
    _prove(coded, read_start(settings.init))
    manifest = manifest_of(source, [c.part for c in coded], settings.statements)
    with written_whole(file) as stream:
        write_expert(stream, manifest, [c.payload for c in coded], settings.key)
        total = stream.tell()
    stored = [c.part.stored_bytes for c in coded]
    return Packed(source, coded, settings.compression, total, sum(stored), 2 * manifest.size, notes)


def _prove(coded: Sequence[CodedPart], start: Start) -> None:
    """Unpack every part in memory. Errors: NotFiniteError if a tensor does not fit its type after unpacking."""
    for one in coded:
        for tensor, dtype, values in tensors_in(one.part, one.payload, start, one.part.file):
            if not isinstance(values, bytes):
                for _ in pieces(tensor, dtype, values):
                    pass


def _base_notes(coded: Sequence[CodedPart], settings: PackSettings) -> list[str]:
    if settings.base is None or not any(one.encoded for one in coded):
        return []
    return [f"modules weighed by how much {settings.base.base} minds an error in each"]


def _quality_notes(coded: Sequence[CodedPart]) -> list[str]:
    """A warning where products are kept so poorly that experts of such a spectrum lost their gain in the evidence."""
    for one in coded:
        if one.encoded is not None and one.encoded.quality < LOW_QUALITY and any(m.norm > 0 for m in one.encoded.modules):
            return [
                f"warning: only {one.encoded.quality:.2f} of what the expert changes is kept (quality, cos^2 of dW as weighted): below "
                f"{LOW_QUALITY:g} experts lost a tenth of their gain and more; measure it, or give more bytes (--quality, --times or "
                "--budget)"
            ]
    return []


def code_source(source: Source, settings: PackSettings, progress: Progress = silent) -> tuple[list[CodedPart], PackSettings]:
    """All parts of a source, coded, in memory, and the settings with the density that a budget led to. Errors: those of
    `save_compressed`.
    """
    if settings.exact:
        start = read_start(settings.init)
        return [code(part, start, "context", progress) for part in plan_exact(source, start)], settings
    if settings.is_ternary:
        return _within_budget(source, replace(settings, codec=settings.codec or "context"), progress)
    start = read_start(settings.init)
    planned = plan(source, start, settings.compression, products=True)
    if not any(part.is_product for part in planned):
        return _within_budget(source, replace(settings, codec="context"), progress, planned)
    others = [None if part.is_product else code(part, start, "context", progress) for part in planned]
    products = {n: products_of(part, progress) for n, part in enumerate(planned) if part.is_product}
    fixed = [one for one in others if one is not None]
    coded = [
        one
        if one is not None
        else code_products(part, products[n], _product_settings(source, settings, part, fixed), _weights(settings, part))
        for n, (part, one) in enumerate(zip(planned, others, strict=True))
    ]
    return coded, settings


def _weights(settings: PackSettings, part: PlannedPart) -> list[float] | None:
    """One weight a product by the base's statistics. Errors: InputError if they are of another base."""
    return None if settings.base is None else product_weights(settings.base, [module for module, _ in part.modules])


def _product_settings(source: Source, settings: PackSettings, part: PlannedPart, others: Sequence[CodedPart]) -> ProductSettings:
    """What the codec of products is asked for. Errors: InputError if the rest of the file takes the whole budget."""
    if settings.quality is not None and settings.budget_bytes is None:
        return ProductSettings(distortion=1 - settings.quality)
    if settings.times is None and settings.budget_bytes is None:
        usual, dense = int(2 * part.layout.size / TIMES), 2 * part.layout.size
        return ProductSettings(budget=max(usual, min(SMALL_BYTES, int(dense / SMALL_TIMES)), 64 + len(part.modules)))
    empty = code_products(
        part, [LowRank(np.zeros((m, 1), np.float32), np.zeros((1, n), np.float32)) for m, n in sides(part)], NOTHING
    )
    head = _file_bytes(source, [*others, empty], settings) - len(empty.payload) - sum(len(c.payload) for c in others) + 4
    rest = sum(len(c.payload) for c in others)
    limits = [settings.budget_bytes - rest - head] if settings.budget_bytes is not None else []
    limits += [int(2 * part.layout.size / settings.times) - head] if settings.times is not None else []
    budget = min(limits)
    if budget <= len(empty.payload):
        raise InputError(
            f"{head + rest:,} bytes do not depend on how much is kept ({head:,} of the manifest, {rest:,} of other tensors), which leaves "
            f"{budget:,} for the products: give more bytes, or save the adapter without what rides along (`compeft inspect` says what)"
        )
    return ProductSettings(budget=budget)


def code_parts(
    source: Source, settings: PackSettings, progress: Progress = silent, planned: Sequence[PlannedPart] | None = None
) -> list[CodedPart]:
    """All parts of a source as ternary changes, coded, in memory. Errors: those of `save_compressed`."""
    start = read_start(settings.init)
    parts = planned or plan(source, start, settings.compression)
    if settings.init is not None and not any(part.uses(start) for part in parts):
        raise InputError(f"{source.path} has no tensor whose start --init {settings.init} gives")
    return [code(part, start, settings.codec or "context", progress) for part in parts]


def _within_budget(
    source: Source, settings: PackSettings, progress: Progress, planned: Sequence[PlannedPart] | None = None
) -> tuple[list[CodedPart], PackSettings]:
    """The parts, at the settings' density or at the highest lower one that fits. Errors: InputError if none does."""
    coded, budget = code_parts(source, settings, progress, planned), settings.budget_bytes
    total = _file_bytes(source, coded, settings)
    if budget is None or total <= budget:
        return coded, settings
    chosen = [c for c in coded if c.planned.compression == settings.compression]
    layouts, others = [c.planned.layout for c in chosen], total - sum(len(c.payload) for c in chosen)
    if budget <= others:
        raise InputError(f"{others:,} bytes do not depend on the density, the budget is {budget:,}: `compeft inspect` says what")

    def make(compression: Compression) -> list[CodedPart]:
        return code_parts(source, replace(settings, density=compression.density))

    used, coded = filled(
        make,
        lambda parts: _file_bytes(source, parts, settings) - others,
        settings.compression,
        sum(layout.ternary_size for layout in layouts),
        sum(layout.dense_size for layout in layouts),
        budget - others,
    )
    return coded, replace(settings, density=used.density)


def _file_bytes(source: Source, coded: Sequence[CodedPart], settings: PackSettings) -> int:
    head = write_expert(io.BytesIO(), manifest_of(source, [c.part for c in coded], settings.statements), [], settings.key)
    return head + sum(len(c.payload) for c in coded)


def manifest_of(source: Source, parts: Sequence[FilePart], statements: Mapping[str, str] = NO_STATEMENTS) -> Manifest:
    """What a file made of these parts says of itself: nothing of when and where, so that equal experts make equal files."""
    files = {part.file for part in parts}
    metadata = {name: header.metadata for name, header in source.files.items() if name in files and header.metadata}
    if statements and parts:
        metadata[parts[0].file] = {**metadata.get(parts[0].file, {}), **statements}
    return Manifest(f"compeft {version('compeft')}", source.base_model, source.config, parts, metadata, source.card)
