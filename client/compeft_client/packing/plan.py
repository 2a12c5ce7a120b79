"""A packing plan: the tensors of a source sorted into parts, each with its settings. A table that says what packing will do."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compeft_client.checkpoints.initial_values import Start, seed_bound
from compeft_client.checkpoints.lora_modules import PREFIX, LoraModule, products_in, scaling_of
from compeft_client.checkpoints.lora_names import alpha_names
from compeft_client.checkpoints.peft_fields import RANDOM_STARTS, is_off, known_fields
from compeft_client.checkpoints.safetensors_file import Header, Stored, read_values
from compeft_client.checkpoints.source import Source
from compeft_client.packing.tensor_rules import COARSE, Treatment, fits_bf16, is_table, treatment_of
from compeft_core import Compression, Layout, layout_of
from compeft_core.errors import InputError
from compeft_proto.expert_manifest import ADAPTER, FLOATS
from compeft_proto.product_part import MAX_PRODUCTS

OTHER_FACTORS = ("use_bdlora", "kasa_config", "monteclora_config", "arrow_config")
"""Options by which an adapter is more, or something else, than the product of its factors."""

GROUPS: tuple[tuple[Treatment, ...], ...] = (
    ("product",),
    ("ternary", "dense"),
    ("coarse",),
    ("quantised",),
    ("positions",),
    ("exact",),
)
"""Treatments that share a part, in the order of the parts of a file."""
COARSE_SIZE = 2**25
"""Most parameters of one coarse part, unless a tensor alone has more: what bounds the memory for the entries kept."""


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """Tensors of one file that are coded alike, in layout order. No compression: as products, as integers, or their own bytes.

    modules: of a product part, with the scaling of each.
    """

    file: str
    layout: Layout
    tensors: Sequence[Stored]
    compression: Compression | None
    treatments: Sequence[Treatment]
    modules: Sequence[tuple[LoraModule, float]] = ()

    @property
    def is_product(self) -> bool:
        """Whether it holds products of LoRA's factors."""
        return self.treatments[0] == "product"

    @property
    def is_coarse(self) -> bool:
        """Whether it holds what travels only because its start is unknown."""
        return "coarse" in self.treatments

    def uses(self, start: Start) -> bool:
        """Whether any of its tensors starts where `start` says, and not at zero."""
        if self.is_product:
            return False
        if start.seed is not None:
            return any(seed_bound(self.file, t.name, t.shape) > 0 for t in self.tensors)
        return any(start.knows(self.file, t.name, t.shape) for t in self.tensors)


def plan(source: Source, start: Start, compression: Compression, *, products: bool = False) -> list[PlannedPart]:
    """The parts of `source`; with `products` LoRA's factors go by what they do. Errors: InputError if there is nothing to pack, or a
    full checkpoint has no start.
    """
    if not source.is_adapter and start.directory is None:
        raise InputError(f"{source.path} is a full checkpoint: give the model it was tuned from, --init BASE")
    parts = [part for file in source.files for part in _parts(source, start, file, compression, products)]
    if not parts:
        raise InputError(f"{source.path} holds no tensors")
    return parts


def _parts(source: Source, start: Start, file: str, compression: Compression, products: bool) -> list[PlannedPart]:
    modules = product_modules(source) if products and file == ADAPTER else []
    coded = {name for module, _ in modules for name in (module.a, module.b)}
    named = [(t, treatment_of(source, start, file, t)) for t in source.files[file].tensors.values()]
    treated: list[tuple[Stored, Treatment]] = [(t, "product" if t.name in coded else _by_value(t, how)) for t, how in named]
    if products:
        treated = [(t, "quantised" if how == "dense" and not start.knows(file, t.name, t.shape) else how) for t, how in treated]
    settings = {"ternary": compression, "coarse": COARSE}
    groups = [(group[0], [(t, how) for t, how in treated if how in group]) for group in GROUPS]
    return [_part(file, run, settings.get(first), modules) for first, members in groups for run in _runs(first, members)]


def _by_value(tensor: Stored, how: Treatment) -> Treatment:
    if how == "exact" and is_table(tensor):
        return "positions"
    return "exact" if how == "dense" and not fits_bf16(tensor) else how


def product_modules(source: Source) -> list[tuple[LoraModule, float]]:
    """The products of an adapter (LoRA, LoHa, LoKr) that can be coded, and what each is multiplied by; none where its configuration has
    an option that changes what factors mean, or that is not known. Errors: InputError for an invalid pattern; those of reading values.
    """
    fields, header = source.fields, source.files.get(ADAPTER)
    if header is None or fields.get("init_lora_weights", True) not in RANDOM_STARTS:
        return []
    if any(not is_off(v) and (name not in known_fields(fields) or name in OTHER_FACTORS) for name, v in fields.items()):
        return []
    modules = products_in({t.name: t.shape for t in header.tensors.values() if t.dtype in FLOATS}, fields)
    if sum(m.slices for m in modules) > MAX_PRODUCTS:
        return []
    scaling = _scaling if fields.get("peft_type") == "LORA" else _scaling_in_pair
    return [(m, abs(scaling(source, header, m)) or 1.0) for m in modules]


def _scaling_in_pair(source: Source, header: Header, module: LoraModule) -> float:
    """What one of a module's two products counts: the root mean square (LoHa) or the norm (LoKr) of the other one, as the update of the
    weight is as large as both together. The scaling alpha / r is taken as the same for all modules.
    """
    other = module.name[:-1] + {"1": "2", "2": "1"}[module.name[-1]]
    whole = header.tensors.get(other)
    if whole is not None:
        norm, size = float(np.linalg.norm(_values(whole))), 1
    elif f"{other}_a" in header.tensors and f"{other}_b" in header.tensors:
        left, right = _values(header.tensors[f"{other}_a"]), _values(header.tensors[f"{other}_b"])
        norm = math.sqrt(max(0.0, float(np.sum((left.T @ left) * (right @ right.T)))))
        size = left.shape[0] * right.shape[1] if source.fields.get("peft_type") == "LOHA" else 1
    else:
        return 1.0
    return norm / math.sqrt(size)


def _values(tensor: Stored) -> NDArray[np.float64]:
    return np.concatenate([np.zeros(0, np.float32), *read_values(tensor)]).astype(np.float64).reshape(tensor.shape)


def _scaling(source: Source, header: Header, module: LoraModule) -> float:
    """By the configuration; without one, by the alpha that lies beside the factors, and 1 if it does not. Errors: those of both."""
    if source.config:
        return scaling_of(source.fields, module.name.removeprefix(PREFIX), module.rank)
    alpha = next((header.tensors[name] for name in alpha_names(module.name) if name in header.tensors), None)
    if alpha is None or alpha.size != 1 or alpha.dtype not in FLOATS:
        return 1.0
    return float(next(read_values(alpha))[0]) / module.rank


def _runs(first: Treatment, members: list[tuple[Stored, Treatment]]) -> list[list[tuple[Stored, Treatment]]]:
    """Members that go into one part: all of them, but coarse ones, which keep two thirds of their entries, in runs of COARSE_SIZE."""
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


def _part(
    file: str,
    members: list[tuple[Stored, Treatment]],
    compression: Compression | None,
    modules: Sequence[tuple[LoraModule, float]],
) -> PlannedPart:
    dense = {t.name for t, how in members if how in ("dense", "exact", "quantised", "positions")}
    layout = layout_of({t.name: t.shape for t, _ in members}, dense)
    by_name = {t.name: (t, how) for t, how in members}
    ordered = [by_name[t.name] for t in layout.tensors]
    own = modules if members[0][1] == "product" else ()
    return PlannedPart(file, layout, [t for t, _ in ordered], compression, [how for _, how in ordered], own)
