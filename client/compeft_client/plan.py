"""A packing plan: the tensors of a source sorted into parts, each with its settings. A table that says what packing will do."""

from collections.abc import Sequence
from dataclasses import dataclass

from compeft_client.checkpoint import Stored
from compeft_client.source import Source
from compeft_client.start import Start, seed_bound
from compeft_client.treatment import COARSE, Treatment, treatment_of
from compeft_core import Compression, Layout, layout_of
from compeft_core.errors import InputError

GROUPS: tuple[tuple[Treatment, ...], ...] = (("ternary", "dense"), ("coarse",), ("exact",))
"""Treatments that share a part, in the order of the parts of a file."""


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """Tensors of one file that are coded alike, in layout order. No compression: their own bytes."""

    file: str
    layout: Layout
    tensors: Sequence[Stored]
    compression: Compression | None
    treatments: Sequence[Treatment]

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
    treated = [(t, treatment_of(source, start, file, t)) for t in source.files[file].tensors.values()]
    settings = {"ternary": compression, "coarse": COARSE, "exact": None}
    found = [(group[0], [(t, how) for t, how in treated if how in group]) for group in GROUPS]
    return [_part(file, members, settings[first]) for first, members in found if members]


def _part(file: str, members: list[tuple[Stored, Treatment]], compression: Compression | None) -> PlannedPart:
    dense = {t.name for t, how in members if how in ("dense", "exact")}
    layout = layout_of({t.name: t.shape for t, _ in members}, dense)
    by_name = {t.name: (t, how) for t, how in members}
    ordered = [by_name[t.name] for t in layout.tensors]
    return PlannedPart(file, layout, [t for t, _ in ordered], compression, [how for _, how in ordered])
