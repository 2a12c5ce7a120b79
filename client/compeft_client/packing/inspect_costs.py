"""What in an adapter costs bytes, and what it would cost packed: measured by coding it at several densities, nothing written."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compeft_client.checkpoints.initial_values import Start, read_start
from compeft_client.checkpoints.safetensors_file import Stored
from compeft_client.checkpoints.source import Source, read_source
from compeft_client.checkpoints.source_check import notes_of, untrained
from compeft_client.packing.auto_scale import auto_compression
from compeft_client.packing.expert_file import write_expert
from compeft_client.packing.pack import PackSettings, manifest_of
from compeft_client.packing.part_codec import Progress as Tick
from compeft_client.packing.part_codec import code, code_products, silent, task_vector
from compeft_client.packing.plan import PlannedPart, plan
from compeft_client.packing.product_codec import products_of
from compeft_client.packing.tensor_rules import Treatment, rides_along
from compeft_client.workers import WORKERS
from compeft_core import compress, encoding_of, shapes_of
from compeft_core.errors import LimitError
from compeft_core.product import ProductSettings
from compeft_proto.expert_manifest import ADAPTER

DENSITIES = (0.01, 0.02, 0.05, 0.10, 0.20)
TIMES = (25.0, 50.0, 100.0, 200.0, 400.0)
NUMBER = re.compile(r"\.\d+(?=\.)")
PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Row:
    """Tensors whose names differ only in numbers, of one type and one treatment. `file` and `name` say which."""

    file: str
    name: str
    dtype: str
    treatment: Treatment
    tensors: int
    parameters: int
    bytes: int

    @property
    def packed_bytes(self) -> int:
        """What it takes packed, if that does not depend on its values: as bfloat16, or as it is."""
        return self.bytes if self.treatment == "exact" else 2 * self.parameters


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a directory holds. `riding` rows belong to layers saved whole beside the adapter; `dead` names tensors that were never trained.

    sizes: (density, bytes of the whole file) as ternary changes.   products: (times below bf16, bytes of the whole file, cos^2 of what is
    kept), where there are products.   notes: what a publisher should know, a line each.
    """

    source: Source
    rows: Sequence[Row]
    riding: Sequence[Row]
    dead: Sequence[str]
    sizes: Sequence[tuple[float, int]]
    notes: Sequence[str]
    products: Sequence[tuple[float, int, float]]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(row.bytes for row in self.rows)

    @property
    def parameters(self) -> int:
        """Parameters in all."""
        return sum(row.parameters for row in self.rows)


def inspect_directory(path: Path, init: str | None = None, tick: Tick = silent) -> Inspection:
    """Look at every tensor of a directory. Errors: those of packing it."""
    source, start = read_source(path), read_start(init)
    parts = plan(source, start, PackSettings().compression)
    rows, riding = rows_of(parts), riding_rows(source, parts)
    sizes, products = _sizes(source, parts, start, tick), _product_sizes(source, start)
    return Inspection(source, rows, riding, untrained(source), sizes, notes_of(source), products)


def pattern(name: str) -> str:
    """A tensor's name without PEFT's prefix, its numbers as stars."""
    return NUMBER.sub(".*", name.removeprefix(PREFIX))


def riding_rows(source: Source, parts: Sequence[PlannedPart]) -> list[Row]:
    """Of the rows of an adapter, those of layers saved whole beside it, largest first."""
    return [row for row in rows_of(parts) if row.file == ADAPTER and rides_along(source, row.file, row.name)]


def rows_of(parts: Sequence[PlannedPart]) -> list[Row]:
    """All tensors as rows, largest first."""
    groups: dict[tuple[str, str, str, Treatment], list[Stored]] = {}
    for part in parts:
        for tensor, treatment in zip(part.tensors, part.treatments, strict=True):
            groups.setdefault((part.file, pattern(tensor.name), tensor.dtype, treatment), []).append(tensor)
    rows = [Row(*key, len(found), sum(t.size for t in found), sum(t.bytes for t in found)) for key, found in groups.items()]
    return sorted(rows, key=lambda row: (-row.bytes, row.name))


def _product_sizes(source: Source, start: Start) -> list[tuple[float, int, float]]:
    """None for those that the rest of the file leaves no room for."""
    planned = plan(source, start, PackSettings().compression, products=True)
    part = next((p for p in planned if p.is_product), None)
    if part is None:
        return []
    fixed = [code(p, start, "context", silent) for p in planned if not p.is_product]
    products, found = products_of(part, silent), []
    for times in TIMES:
        try:
            coded = code_products(part, products, ProductSettings(budget=max(1, int(2 * part.layout.size / times))))
        except LimitError:
            continue
        head = write_expert(io.BytesIO(), manifest_of(source, [coded.part, *(c.part for c in fixed)]), [], None)
        cos2 = coded.encoded.cos2 if coded.encoded else 0.0
        found.append((times, head + len(coded.payload) + sum(len(c.payload) for c in fixed), cos2))
    return found


def _sizes(source: Source, parts: Sequence[PlannedPart], start: Start, tick: Tick) -> list[tuple[float, int]]:
    coded = [code(part, start, "context", tick) for part in parts]
    head = write_expert(io.BytesIO(), manifest_of(source, [c.part for c in coded]), [], None)
    sizes = dict.fromkeys(DENSITIES, head)
    for part, done in zip(parts, coded, strict=True):
        if part.treatments[0] == "ternary":
            vector, _ = task_vector(part, start)
            for density in DENSITIES:
                update = compress(part.layout, vector, auto_compression(density), workers=WORKERS)
                shapes = shapes_of(part.layout)
                sizes[density] += len(encoding_of(update, codec="context", shapes=shapes, workers=WORKERS).blob)
        else:
            sizes = {density: size + len(done.payload) for density, size in sizes.items()}
    return list(sizes.items())
