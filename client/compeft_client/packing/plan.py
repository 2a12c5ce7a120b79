"""A packing plan: the tensors of a source sorted into parts, each with its settings. A table that says what packing will do."""

from collections.abc import Sequence
from dataclasses import dataclass

from compeft_client.checkpoints.initial_values import Start, seed_bound
from compeft_client.checkpoints.safetensors_file import Stored
from compeft_client.checkpoints.source import Source
from compeft_client.packing.tensor_rules import COARSE, Treatment, fits_bf16, treatment_of
from compeft_core import Compression, Layout, layout_of
from compeft_core.errors import InputError

GROUPS: tuple[tuple[Treatment, ...], ...] = (("ternary", "dense"), ("coarse",), ("exact",))
"""Treatments that share a part, in the order of the parts of a file."""
COARSE_SIZE = 2**25
"""Most parameters of one coarse part, unless a tensor alone has more: what bounds the memory for the entries kept."""


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """Tensors of one file that are coded alike, in layout order. No compression: their own bytes."""

    file: str
    layout: Layout
    tensors: Sequence[Stored]
    compression: Compression | None
    treatments: Sequence[Treatment]

    @property
    def is_coarse(self) -> bool:
        """Whether it holds what travels only because its start is unknown."""
        return "coarse" in self.treatments

    def uses(self, start: Start) -> bool:
        """Whether any of its tensors starts where `start` says, and not at zero."""
        if start.seed is not None:
            return any(seed_bound(self.file, t.name, t.shape) > 0 for t in self.tensors)
        return any(start.knows(self.file, t.name, t.shape) for t in self.tensors)


def plan(source: Source, start: Start, compression: Compression) -> list[PlannedPart]:
    """The parts of `source`. Errors: InputError if there is nothing to pack, or a full checkpoint has no start."""
    if not source.is_adapter and start.directory is None:
        raise InputError(f"{source.path} is a full checkpoint: give the model it was tuned from, --init BASE")
    parts = [part for file in source.files for part in _parts(source, start, file, compression)]
    if not parts:
        raise InputError(f"{source.path} holds no tensors")
    return parts


def _parts(source: Source, start: Start, file: str, compression: Compression) -> list[PlannedPart]:
    named = [(t, treatment_of(source, start, file, t)) for t in source.files[file].tensors.values()]
    treated: list[tuple[Stored, Treatment]] = [(t, "exact" if how == "dense" and not fits_bf16(t) else how) for t, how in named]
    settings = {"ternary": compression, "coarse": COARSE, "exact": None}
    groups = [(group[0], [(t, how) for t, how in treated if how in group]) for group in GROUPS]
    return [_part(file, run, settings[first]) for first, members in groups for run in _runs(first, members)]


def _runs(first: Treatment, members: list[tuple[Stored, Treatment]]) -> list[list[tuple[Stored, Treatment]]]:
    """Members that go into one part: all of them, but coarse ones, which keep so many entries, in runs of COARSE_SIZE."""
    if first != "coarse":
        return [members] if members else []
    runs: list[list[tuple[Stored, Treatment]]] = []
    left = 0
    for tensor, how in sorted(members, key=lambda member: member[0].name.encode()):
        if not runs or tensor.size > left:
            runs.append([])
            left = COARSE_SIZE
        runs[-1].append((tensor, how))
        left -= tensor.size
    return runs


def _part(file: str, members: list[tuple[Stored, Treatment]], compression: Compression | None) -> PlannedPart:
    dense = {t.name for t, how in members if how in ("dense", "exact")}
    layout = layout_of({t.name: t.shape for t, _ in members}, dense)
    by_name = {t.name: (t, how) for t, how in members}
    ordered = [by_name[t.name] for t in layout.tensors]
    return PlannedPart(file, layout, [t for t, _ in ordered], compression, [how for _, how in ordered])
