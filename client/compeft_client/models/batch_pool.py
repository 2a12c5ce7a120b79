"""BatchPool: one batch through a model, each row with an expert of its own.

    from compeft_client import BatchPool

    pool = BatchPool(model)                              # a base model; its weights are not changed
    pool.add("berlin", "berlin.expert")
    pool.add("paris", "paris.expert")
    with pool.batch(["berlin", "paris", None, "berlin"]):     # None: the base model
        model(**inputs)                                  # four rows

Each row's output equals what the row gives alone with its expert, up to the rounding of float32 sums. Files are kept in memory as they
are coded, `capacity_bytes` of them, and ready to apply (half a byte an entry), `ready_bytes` of them; those used longest ago make room.
Thread-safe: threads may run different batches through one model at once.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compeft_client.checkpoints.initial_values import read_start
from compeft_client.checkpoints.lora_modules import PREFIX, factors_of, modules_of, scaling_of
from compeft_client.checkpoints.peft_fields import check_fields
from compeft_client.checkpoints.source import fields_of
from compeft_client.models.batch_factors import ModuleFactors, batch_factors
from compeft_client.models.thin_expert import ThinExpert, thin_of_factors, thin_of_symbols
from compeft_client.packing.expert_file import ExpertFile, open_expert, read_payload_of
from compeft_client.packing.pack import load_tensors
from compeft_core.errors import InputError, LayoutMismatchError
from compeft_core.lru_cache import LruCache
from compeft_proto.expert_manifest import ADAPTER
from compeft_proto.keys import PublicKey
from compeft_proto.lora_modules import LoraModule
from compeft_proto.product_part import symbols_of

MIB = 2**20


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """resident: experts ready to apply; coded: those in memory as they are coded.   hits, misses: of those ready.   decode_s: in all."""

    resident: int
    resident_bytes: int
    coded: int
    coded_bytes: int
    hits: int
    misses: int
    evictions: int
    decode_s: float


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """An expert that was added: its file, and of each module its number in the pool and what its product is multiplied by."""

    file: ExpertFile
    places: Mapping[str, int]
    scalings: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Hooked:
    """A linear layer of the model that some expert changes."""

    number: int
    layer: nn.Linear
    handle: RemovableHandle


class BatchPool:
    """Experts for the linear layers of one model. capacity_bytes: of coded payloads; ready_bytes: of experts ready to apply.

    init: the directory that experts were packed against; key: their signer's, without it nobody's signature is asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        capacity_bytes: int = 256 * MIB,
        ready_bytes: int = 256 * MIB,
        init: str | None = None,
        key: PublicKey | None = None,
    ) -> None:
        self._model, self._start, self._key = model, read_start(init), key
        self._known: dict[str, _Known] = {}
        self._modules: dict[str, Hooked] = {}
        self._coded = LruCache[str, bytes](capacity_bytes, len, keep_last=False)
        self._ready = LruCache[str, ThinExpert](ready_bytes, lambda thin: thin.held_bytes)
        self._table, self._now = threading.Lock(), threading.local()
        self._reader = ThreadPoolExecutor(1, "expert-prefetch")
        self._hits = self._misses = 0
        self._decode_s = 0.0

    def __enter__(self) -> "BatchPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks from the model and forget all experts."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        with self._table:
            for hooked in self._modules.values():
                hooked.handle.remove()
            self._modules.clear()
            self._known.clear()
        self._coded.clear()
        self._ready.clear()

    def add(self, name: str, file: Path | str) -> None:
        """Make an expert known by its manifest; its payload is read when it is first needed.

        Errors: InputError if the name is taken, or for an adapter that is not LoRA of linear layers; LayoutMismatchError if the model has
        no such layer; FormatError; with a key, UnknownKeyError, SignatureError.
        """
        opened = open_expert(Path(file), self._key)
        fields = fields_of(opened.manifest.config, Path(file)) if opened.manifest.config else {}
        modules = _checked_modules(opened, fields)
        scalings = {m.name: scaling_of(fields, m.name.removeprefix(PREFIX), m.rank) for m in modules}
        with self._table:
            if name in self._known:
                raise InputError(f"{name!r} is {self._known[name].file.path} already: choose another name for {file}")
            self._known[name] = _Known(opened, {module.name: self._hook(module) for module in modules}, scalings)

    def _hook(self, module: LoraModule) -> int:
        """The number of a module, whose linear layer is hooked once. The table is locked. Errors: LayoutMismatchError."""
        place = module.name.removeprefix(PREFIX)
        try:
            layer = self._model.get_submodule(place)
        except AttributeError as error:
            raise LayoutMismatchError(f"the model has no module {place!r}: is the expert for another base model?") from error
        if not isinstance(layer, nn.Linear) or tuple(layer.weight.shape) != module.sides:
            found = f"Linear of {tuple(layer.weight.shape)}" if isinstance(layer, nn.Linear) else type(layer).__name__
            raise LayoutMismatchError(f"module {place!r} is a {found}, the expert has factors for {module.sides}")
        if module.name not in self._modules:
            number = len(self._modules)
            self._modules[module.name] = Hooked(number, layer, layer.register_forward_hook(self._hooked(number)))
        return self._modules[module.name].number

    def _hooked(self, number: int) -> Any:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            factors: Sequence[ModuleFactors | None] | None = getattr(self._now, "factors", None)
            if factors is None or (found := factors[number]) is None:
                return output
            if inputs[0].shape[0] != found.rows:
                raise InputError(f"the model was given {inputs[0].shape[0]} rows, the batch names {found.rows} experts")
            return found.added_to(output, inputs[0])

        return hook

    @contextmanager
    def batch(self, names: Sequence[str | None]) -> Iterator[None]:
        """Inside, this thread's calls of the model take row i with expert names[i]. Errors: InputError for an unknown name; FormatError."""
        factors = self._factors(names)
        before = getattr(self._now, "factors", None)
        self._now.factors = factors
        try:
            yield
        finally:
            self._now.factors = before

    def _factors(self, names: Sequence[str | None]) -> list[ModuleFactors | None]:
        unique = list(dict.fromkeys(name for name in names if name is not None))
        number = {name: at for at, name in enumerate(unique)}
        experts = [self._thin(name) for name in unique]
        with self._table:
            layers = [hooked.layer for hooked in self._modules.values()]
        sides = [(layer.weight.shape[0], layer.weight.shape[1]) for layer in layers]
        rows = [-1 if name is None else number[name] for name in names]
        return batch_factors(rows, experts, sides, layers[0].weight) if layers else []

    def prefetch(self, names: Iterable[str]) -> "list[Future[ThinExpert]]":
        """Read and decode in the background, in this order. A failure shows in the future, and when the expert is needed."""
        return [self._reader.submit(self._thin, name) for name in names]

    @property
    def figures(self) -> PoolFigures:
        """What is in memory and what was counted."""
        ready, coded = len(self._ready.keys()), len(self._coded.keys())
        evictions = self._misses - ready
        return PoolFigures(
            ready,
            self._ready.held_bytes,
            coded,
            self._coded.held_bytes,
            self._hits,
            self._misses,
            max(0, evictions),
            self._decode_s,
        )

    def _thin(self, name: str) -> ThinExpert:
        with self._table:
            known = self._known.get(name)
            if known is None:
                raise InputError(f"no expert {name[:40]!a} in this pool of {len(self._known)}")
        found = self._ready.get(name)
        if found is not None:
            self._count(hits=1)
            return found
        began = time.perf_counter()
        thin = self._decoded(name, known)
        self._ready.put(name, thin)
        self._count(misses=1, decode_s=time.perf_counter() - began)
        return thin

    def _count(self, hits: int = 0, misses: int = 0, decode_s: float = 0.0) -> None:
        with self._table:
            self._hits, self._misses, self._decode_s = self._hits + hits, self._misses + misses, self._decode_s + decode_s

    def _decoded(self, name: str, known: _Known) -> ThinExpert:
        numbered = [(number, part) for number, part in enumerate(known.file.manifest.parts) if part.file == ADAPTER]
        if len(numbered) == 1 and numbered[0][1].slices is not None:
            number, part = numbered[0]
            symbols = symbols_of(self._payload(name, known.file, number), part.modules)
            scalings = [known.scalings[module.name] for module in part.modules]
            return thin_of_symbols(symbols, scalings, [known.places[module.name] for module in part.modules])
        return self._of_tensors(known)

    def _of_tensors(self, known: _Known) -> ThinExpert:
        tensors = load_tensors(known.file, ADAPTER, self._start)
        modules = modules_of({n: t.shape for n, t in tensors.items()}, {})
        factors = []
        for module in modules:
            [(left, right)] = factors_of(module, tensors[module.a], tensors[module.b])
            factors.append((left.astype(np.float32) * np.float32(known.scalings[module.name]), right.astype(np.float32)))
        return thin_of_factors(factors, [known.places[module.name] for module in modules])

    def _payload(self, name: str, file: ExpertFile, number: int) -> bytes:
        found = self._coded.get(name)
        if found is None:
            found = read_payload_of(file, number)
            self._coded.put(name, found)
        return found


def _checked_modules(opened: ExpertFile, fields: Mapping[str, object]) -> list[LoraModule]:
    """The modules of an expert. Errors: InputError for what is not LoRA's two factors of linear layers."""
    where = str(opened.path)
    if not fields:
        raise InputError(f"{where} has no adapter_config.json: BatchPool takes LoRA adapters")
    check_fields(fields, "pool", where)
    if fields.get("use_dora") or fields.get("fan_in_fan_out"):
        raise InputError(f"{where} is DoRA or has fan_in_fan_out: use ExpertPool, which switches one expert at a time")
    shapes = {t.name: t.shape for part in opened.manifest.parts if part.file == ADAPTER for t in part.layout.tensors}
    modules = modules_of(shapes, fields)
    taken = {name for module in modules for name in (module.a, module.b)}
    plain = all(m.slices == 1 and len(m.a_shape) == len(m.b_shape) == 2 and m.a.endswith(".lora_A.weight") for m in modules)
    if not modules or not plain or set(shapes) != taken:
        raise InputError(f"{where} changes more than linear layers: use ExpertPool, which switches one expert at a time")
    return modules
