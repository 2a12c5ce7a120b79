"""ExpertPool: hundreds of experts held compressed where one would fit as bfloat16, and any of them active within milliseconds.

    from compeft_client import ExpertPool

    pool = ExpertPool(model, capacity_bytes=2**30)
    pool.add("berlin", "berlin.expert")
    with pool.using("berlin"):
        model(...)
    with pool.using({"berlin": 0.5, "paris": 0.5}):
        model(...)
    model(...)                                     # the base model, bit for bit

Experts are packed files. Their bytes are checked once, when they are read, and are kept until others, used later, need the room;
then they are read again. What is active is float32 and exact: start plus what was kept. Safe to use from several threads: one
thread at a time is inside `using`, or writes the adapter.
"""

import hashlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from compeft_client.checkpoints.initial_values import Start, read_start
from compeft_client.checkpoints.safetensors_file import NUMPY, to_float32
from compeft_client.checkpoints.source import fields_of
from compeft_client.exchange.pool_reports import PoolUsage, ResidentFile
from compeft_client.models.adapter_slot import AdapterSlot, HeldPart
from compeft_client.models.pool_counts import PoolCounts
from compeft_client.packing.expert_file import ExpertFile, open_expert, read_payload_of
from compeft_client.packing.pack import load_tensors
from compeft_client.packing.part_codec import read_part, start_of, start_vector, tensors_in
from compeft_core.errors import InputError
from compeft_core.lru_cache import LruCache
from compeft_proto.clock import now_ms
from compeft_proto.errors import ConflictError
from compeft_proto.expert_manifest import ADAPTER, HEAD, FilePart, Manifest
from compeft_proto.keys import PublicKey
from compeft_proto.product_part import symbols_of

CAPACITY_BYTES = 2**30
Chosen = str | Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """One expert in memory: `held_bytes` counts its encodings and their indexes."""

    parts: tuple[HeldPart, ...]
    held_bytes: int


class ExpertPool:
    """Experts for one adapter of one model: a PEFT model, or a base model, which the first expert's configuration makes one in place.

    capacity_bytes: of compressed experts in memory, the one used longest ago leaves first; init: the directory that experts were
    packed against, where they were; key: their signer's, without it nobody's signature is asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        capacity_bytes: int = CAPACITY_BYTES,
        init: str | None = None,
        key: PublicKey | None = None,
        adapter: str = "default",
    ) -> None:
        self._model, self._adapter = model, adapter
        self._slot = AdapterSlot(model, adapter) if isinstance(model, PeftModel) else None
        self._start, self._key = read_start(init), key
        self._files: dict[str, ExpertFile] = {}
        self._held = LruCache[str, Held](capacity_bytes, lambda held: held.held_bytes, keep_last=False)
        self._active: dict[str, float] = {}
        self._counts, self._digests = PoolCounts(now_ms()), dict[str, bytes]()
        self._table, self._model_lock = threading.RLock(), threading.RLock()
        self._reader = ThreadPoolExecutor(1, "expert-prefetch")
        self.deactivate()

    def __enter__(self) -> "ExpertPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the model with its base only, and forget all experts."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self.deactivate()
        self._held.clear()
        with self._table:
            self._files.clear()

    def add(self, name: str, file: Path | str) -> None:
        """Make an expert known by its manifest; its payload is read when it is first needed.

        Errors: ConflictError if the name is taken by another file; InputError, LayoutMismatchError if it does not fit the model;
        FormatError; with a key, UnknownKeyError, SignatureError.
        """
        opened = open_expert(Path(file), self._key)
        manifest = opened.manifest
        adapter = [part for part in manifest.parts if part.file == ADAPTER]
        if not any(part.coding or part.slices is not None for part in adapter):
            raise InputError(f"{file} is not a packed LoRA adapter: only those can be switched")
        if not manifest.config:
            raise InputError(
                f"{file} is a LoRA of a diffusion model, without adapter_config.json: unpack it and load it with diffusers"
            )
        fields = fields_of(manifest.config, Path(file))
        self._slot_for(fields).check([part.layout for part in adapter], fields)
        with self._table:
            known = self._files.setdefault(name, opened)
        if _payloads(known.manifest) != _payloads(manifest):
            raise ConflictError(f"{name!r} is {known.path} already: choose another name for {file}")

    def _slot_for(self, fields: Mapping[str, Any]) -> AdapterSlot:
        """The adapter's place in the model. A base model gets an adapter of the configuration `fields`, once."""
        with self._model_lock:
            if self._slot is None:
                config = cast(PeftConfig, cast(Any, PeftConfig).from_peft_type(**{**fields, "inference_mode": True}))
                self._slot = AdapterSlot(get_peft_model(self._model, config, adapter_name=self._adapter), self._adapter)
                self._slot.leave()
            return self._slot

    def prefetch(self, names: Iterable[str]) -> "list[Future[Held]]":
        """Read experts in the background, in this order. A failure shows when the expert is activated."""
        return [self._reader.submit(self._hold, name) for name in names]

    def activate(self, chosen: Chosen) -> None:
        """Put one expert, or a weighted composition, into the model. Errors: InputError for an unknown name or experts that do not
        compose; FormatError for a damaged file. After an error the model is what it was.
        """
        weights = {chosen: 1.0} if isinstance(chosen, str) else dict(chosen)
        if not weights:
            raise InputError("no expert is named: `deactivate` goes back to the base model")
        started = time.perf_counter()
        switches = weights != self._active
        held = [(self._hold(name, counted=switches).parts, weight) for name, weight in sorted(weights.items())]
        with self._model_lock:
            if weights != self._active:
                self._slot_for({}).fill(held)
                self._active = weights
                self._counts.switched(time.perf_counter() - started)

    def deactivate(self) -> None:
        """Back to the base model, bit for bit."""
        with self._model_lock:
            if self._slot is not None:
                self._slot.leave()
            self._active = {}

    @contextmanager
    def using(self, chosen: Chosen) -> Iterator[None]:
        """Have it active inside, while no other thread switches; the base model again afterwards. Errors: as `activate`."""
        with self._model_lock:
            self.activate(chosen)
            try:
                yield
            finally:
                self.deactivate()

    def head(self, name: str) -> Mapping[str, NDArray[np.generic]]:
        """The tensors of an expert's own classification head, by name; none if its file has none. Errors: InputError, FormatError."""
        opened = self._file(name)
        return load_tensors(opened, HEAD, self._start) if HEAD in opened.manifest.files else {}

    @property
    def names(self) -> list[str]:
        """All experts that were added, sorted."""
        with self._table:
            return sorted(self._files)

    @property
    def resident(self) -> list[str]:
        """Those in memory, the one used longest ago first."""
        return self._held.keys()

    @property
    def held_bytes(self) -> int:
        """Bytes of the experts in memory."""
        return self._held.held_bytes

    @property
    def active(self) -> Mapping[str, float]:
        """Name -> weight of what is in the model now; empty: the base model."""
        return dict(self._active)

    def usage(self) -> PoolUsage:
        """What the pool holds, and what it did since it was made: for `compeft_client.reporting`. Reads a file's digest once."""
        held = self._held.items()
        parameters = sum(part.layout.size for _, one in held for part in one.parts)
        device = next(self._model.parameters()).device
        return PoolUsage(
            engine="ExpertPool",
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type),
            started_at_ms=self._counts.started_at_ms,
            known=len(self.names),
            experts=tuple(ResidentFile(name, self._digest(name), one.held_bytes) for name, one in held),
            dense_bf16_bytes=2 * parameters,
            capacity_bytes=self._held.max_bytes,
            switches=self._counts.switches,
            hits=self._counts.hits,
            misses=self._counts.misses,
            switch_seconds=self._counts.switch_seconds,
            decode_seconds=self._counts.decode_seconds,
            device_memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        )

    def _digest(self, name: str) -> bytes:
        if name not in self._digests:
            self._digests[name] = hashlib.sha256(self._file(name).path.read_bytes()).digest()
        return self._digests[name]

    def _file(self, name: str) -> ExpertFile:
        with self._table:
            found = self._files.get(name)
        if found is None:
            raise InputError(f"no expert {name[:40]!a} in this pool; there are: {', '.join(self.names) or 'none'}")
        return found

    def _hold(self, name: str, *, counted: bool = False) -> Held:
        """The expert, in memory and the newest there. What is larger than the capacity is read but not kept. counted: it is switched to."""
        opened = self._file(name)
        held = self._held.get(name)
        if counted:
            self._counts.looked(held is not None)
        if held is None:
            started = time.perf_counter()
            held = self._read(opened)
            self._counts.decoded(time.perf_counter() - started)
            self._held.put(name, held)
        return held

    def _read(self, opened: ExpertFile) -> Held:
        parts = []
        for number, part in enumerate(opened.manifest.parts):
            if part.file == ADAPTER:
                if part.initial_digest:
                    start_vector(
                        part, self._start, opened.path.name
                    )  # refuses another directory than the one it was packed against
                parts.append(self._held_part(part, read_payload_of(opened, number), opened.path.name))
        return Held(tuple(parts), sum(part.held_bytes for part in parts))

    def _held_part(self, part: FilePart, payload: bytes, name: str) -> HeldPart:
        if part.slices is not None:
            modules = part.modules
            return HeldPart(part.file, part.layout, None, Start(), symbols_of(payload, modules), tuple(modules))
        if part.coding is not None:
            return HeldPart(part.file, part.layout, read_part(part, payload), start_of(part, self._start, name))
        rows = [
            to_float32(dtype, np.frombuffer(v, NUMPY[dtype])) if isinstance(v, bytes) else v
            for _, dtype, v in tensors_in(part, payload, self._start, name)
        ]
        return HeldPart(part.file, part.layout, None, Start(), values=np.concatenate(rows))


def _payloads(manifest: Manifest) -> list[bytes]:
    return [part.payload_sha256 for part in manifest.parts]
