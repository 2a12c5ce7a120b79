"""The place in a loaded PEFT model where one expert at a time is active: the adapter's parameters, written as a whole.

It takes over the adapter's storage: float32 parameters become views of one flat tensor in layout order, so an expert is put in
place by one copy of where it started and one pass over what was kept. Parameters of another type are rounded from it, once.
Whoever holds a slot writes the adapter only through it. Not thread-safe; the pool is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from peft import LoraConfig, LoraModel, PeftModel
from torch import Tensor, nn

from compeft_client.checkpoints.initial_values import Start, initial_vector
from compeft_client.models.adapter import check_plain
from compeft_client.models.device_codec import apply_on_device
from compeft_core import Encoded, Layout, add_to
from compeft_core.errors import InputError, LayoutMismatchError

SAME_FIELDS = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
"""Options that decide what an adapter's numbers mean: an expert's must be the model's."""

STARTS_KEPT = 4
"""Different initial states kept as float32; most pools have one."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldPart:
    """Tensors of an adapter that were coded together: what was kept, and where they started."""

    file: str
    layout: Layout
    encoded: Encoded
    start: Start

    @property
    def origin(self) -> tuple[bytes, int | None, str]:
        """Two parts with the same origin have the same layout and start from the same values."""
        return self.layout.digest, self.start.seed, str(self.start.directory.path) if self.start.directory else ""


class AdapterSlot:
    """One adapter of one model. Errors: InputError if it is not plain LoRA (`adapter.check_plain`)."""

    def __init__(self, model: PeftModel, adapter: str = "default") -> None:
        if adapter not in model.peft_config:
            raise InputError(f"model has no adapter {adapter!r}, it has {sorted(model.peft_config)}")
        check_plain(model.peft_config[adapter])
        self._layers, self._config = cast(LoraModel, model.base_model), model.peft_config[adapter]
        own = f".{adapter}."
        self._parameters = {n.replace(own, "."): p for n, p in model.named_parameters() if own in n and "lora_" in n}
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
        for field in SAME_FIELDS:
            there = fields.get(field, getattr(LoraConfig(), field))
            here = getattr(self._config, field)
            if there != here:
                raise InputError(
                    f"expert has {field} {there!r}, the model's adapter has {here!r}: load them in a model of their own"
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
        self._house([part.layout for part in first])
        for number, part in enumerate(first):
            buffer = self._buffers[part.layout.digest]
            self._restart(part, buffer)
            for parts, weight in experts:
                _add(parts[number].encoded, buffer, weight)
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


def _add(encoded: Encoded, buffer: Tensor, weight: float) -> None:
    if buffer.device.type == "cpu":
        add_to(encoded, buffer.numpy(), weight, workers=torch.get_num_threads())
    else:
        apply_on_device(encoded, buffer, weight)
