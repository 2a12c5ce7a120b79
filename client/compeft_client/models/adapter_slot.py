"""The place in a loaded PEFT model where one expert at a time is active: the adapter's parameters, written as a whole.

It takes over the adapter's storage: float32 parameters become views of one flat tensor in layout order, so an expert is put in
place by one copy of where it started and one pass over what was kept. Parameters of another type are rounded from it, once.
Whoever holds a slot writes the adapter only through it. Not thread-safe; the pool is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraModel, PeftModel
from torch import Tensor, nn

from compeft_client.checkpoints.initial_values import Start, initial_vector
from compeft_client.checkpoints.peft_fields import check_fields, differing_field
from compeft_client.checkpoints.tensor_names import without_adapter
from compeft_client.models.adapter import check_plain
from compeft_client.models.device_codec import apply_on_device
from compeft_core import Encoded, Layout, add_to
from compeft_core.errors import InputError, LayoutMismatchError
from compeft_core.product import ProductSymbols, factors_of
from compeft_proto.lora_modules import LoraModule, tensors_of_factors

RANKS = ("r", "rank_pattern")
"""An expert's tensors must have the model's shapes; its other options are held against `peft_fields`."""

STARTS_KEPT = 4
"""Different initial states kept as float32; most pools have one."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldPart:
    """Tensors of an adapter that were coded together: ternary (what was kept, and where they started), products, or their values.

    modules: of products.   values: flat float32 in layout order, of tensors that are not coded (DoRA's magnitudes).
    """

    file: str
    layout: Layout
    encoded: Encoded | None
    start: Start
    symbols: ProductSymbols | None = None
    modules: tuple[LoraModule, ...] = ()
    values: NDArray[np.float32] | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes that it takes in memory."""
        held = (self.encoded.held_bytes if self.encoded else 0) + (self.symbols.held_bytes if self.symbols else 0)
        return held + (self.values.nbytes if self.values is not None else 0)

    @property
    def origin(self) -> tuple[bytes, int | None, str]:
        """Two parts with the same origin have the same layout and start from the same values."""
        return self.layout.digest, self.start.seed, str(self.start.directory.path) if self.start.directory else ""


class AdapterSlot:
    """One adapter of one model. Errors: InputError if it is not plain LoRA (`adapter.check_plain`)."""

    def __init__(self, model: PeftModel, adapter: str = "default") -> None:
        if adapter not in model.peft_config:
            raise InputError(f"model has no adapter {adapter!r}, it has {sorted(model.peft_config)}")
        check_plain(model.peft_config[adapter], also=("use_dora", "use_qalora", "target_parameters", "layer_replication"))
        self._layers, self._config = cast(LoraModel, model.base_model), model.peft_config[adapter]
        named = {n: (*without_adapter(n), p) for n, p in model.named_parameters() if "lora_" in n}
        self._parameters = {plain: p for plain, found, p in named.values() if found == adapter}
        self._device = next(iter(self._parameters.values())).device
        self._buffers: dict[bytes, Tensor] = {}
        self._rounded: list[tuple[nn.Parameter, Tensor]] = []
        self._initial: dict[tuple[bytes, int | None, str], Tensor | None] = {}

    def check(self, layouts: Sequence[Layout], fields: Mapping[str, object]) -> None:
        """Whether an expert fits this model. Errors: LayoutMismatchError, InputError, naming what differs."""
        shapes = {t.name: t.shape for layout in layouts for t in layout.tensors}
        for name in sorted(set(shapes) ^ set(self._parameters)):
            raise LayoutMismatchError(f"tensor {name!r} is {'not in the model' if name in shapes else 'not in the expert'}")
        for name, parameter in self._parameters.items():
            if tuple(parameter.shape) != shapes[name]:
                raise LayoutMismatchError(f"tensor {name!r} is {shapes[name]}, the model has {tuple(parameter.shape)}")
        check_fields(fields, "pool", "the expert")
        here = self._config.to_dict()
        here["peft_type"] = fields.get("peft_type")
        for field in (
            differing_field(fields, here, "pool"),
            *(name for name in RANKS if (fields.get(name) or {}) != (here[name] or {})),
        ):
            if field:
                there = fields.get(field)
                raise InputError(
                    f"expert has {field} {there!r}, the model's adapter has {here[field]!r}: load them in a model of their own"
                )

    @torch.no_grad()
    def fill(self, experts: Sequence[tuple[Sequence[HeldPart], float]]) -> None:
        """Write start + sum of weight * what was kept, in the order given, into the adapter, which is then on.

        Errors, before anything is written: InputError if the experts do not start from the same values.
        """
        first = experts[0][0]
        for parts, _ in experts[1:]:
            if [p.origin for p in parts] != [p.origin for p in first]:
                raise InputError(
                    "experts that start from different values cannot be composed: their task vectors have no common origin"
                )
        _check_composition(experts)
        self._house([part.layout for part in first])
        for number, part in enumerate(first):
            buffer, alike = self._buffers[part.layout.digest], [(parts[number], weight) for parts, weight in experts]
            if part.encoded is None:
                values = part.values if part.values is not None else stacked(alike)
                buffer.copy_(torch.from_numpy(values))
                continue
            self._restart(part, buffer)
            for other, weight in alike:
                if other.encoded is not None:
                    _add(other.encoded, buffer, weight)
        for parameter, view in self._rounded:
            parameter.copy_(view)
        self._layers.enable_adapter_layers()

    def leave(self) -> None:
        """Turn the adapter off: the model computes what its base model does, bit for bit."""
        self._layers.disable_adapter_layers()

    def _house(self, layouts: Sequence[Layout]) -> None:
        """A flat tensor for each layout, and the parameters in it."""
        if set(self._buffers) == {layout.digest for layout in layouts}:
            return
        self._buffers, self._rounded = {}, []
        for layout in layouts:
            buffer = torch.zeros(layout.size, dtype=torch.float32, device=self._device)
            self._buffers[layout.digest] = buffer
            at = 0
            for tensor in layout.tensors:
                parameter, view = self._parameters[tensor.name], buffer[at : at + tensor.size].view(tensor.shape)
                at += tensor.size
                if parameter.dtype == torch.float32:
                    parameter.data = view
                else:
                    self._rounded.append((parameter, view))

    def _restart(self, part: HeldPart, buffer: Tensor) -> None:
        if part.origin not in self._initial:
            if len(self._initial) == STARTS_KEPT:
                self._initial.pop(next(iter(self._initial)))
            vector = torch.from_numpy(initial_vector(part.file, part.layout, part.start))
            self._initial[part.origin] = vector.to(self._device) if vector.any() else None
        initial = self._initial[part.origin]
        if initial is None:
            buffer.zero_()
        else:
            buffer.copy_(initial)


def _check_composition(experts: Sequence[tuple[Sequence[HeldPart], float]]) -> None:
    """Errors: InputError if a composition has more components than a module's rank, or tensors that do not add up."""
    first = experts[0][0]
    if len(experts) == 1:
        if experts[0][1] != 1 and any(part.values is not None for part in first):
            raise InputError("an expert with magnitudes (DoRA) has no half: its weight must be 1")
        return
    for number, part in enumerate(first):
        if part.values is not None:
            raise InputError(f"experts with {part.layout.tensors[0].name!r} cannot be composed: magnitudes (DoRA) are not sums")
        held = [symbols for parts, _ in experts if (symbols := parts[number].symbols) is not None]
        if not held:
            continue
        total = np.sum([symbols.ranks for symbols in held], axis=0).tolist()
        most = [module.rank for module in part.modules for _ in range(module.slices)]
        for place, (components, rank) in enumerate(zip(total, most, strict=True)):
            if components > rank:
                raise InputError(
                    f"product {place} of this composition has {components} components, the model's adapter has rank {rank}: merge the "
                    "experts instead (compeft merge), or load an adapter of a higher rank"
                )


def stacked(alike: Sequence[tuple[HeldPart, float]]) -> NDArray[np.float32]:
    """The sum of weighted products as factors side by side, in layout order: flat float32. A weight goes to the left factor."""
    part = alike[0][0]
    found = [[(f.left * np.float32(w), f.right) for f in factors_of(p.symbols)] for p, w in alike if p.symbols is not None]
    joined = [
        (np.hstack([left for left, _ in same]), np.vstack([right for _, right in same])) for same in zip(*found, strict=True)
    ]
    tensors, at = dict[str, NDArray[np.float32]](), 0
    for module in part.modules:
        tensors[module.a], tensors[module.b] = tensors_of_factors(joined[at : at + module.slices], module.rank, module)
        at += module.slices
    return np.concatenate([tensors[t.name].reshape(-1) for t in part.layout.tensors])


def _add(encoded: Encoded, buffer: Tensor, weight: float) -> None:
    if buffer.device.type == "cpu":
        add_to(encoded, buffer.numpy(), weight, workers=torch.get_num_threads())
    else:
        apply_on_device(encoded, buffer, weight)
