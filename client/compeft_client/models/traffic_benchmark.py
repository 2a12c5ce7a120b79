"""Measures a batch whose rows want different experts: BatchPool beside PEFT's mixed batch (`adapter_names`) and its hot swap.

The model is a BERT encoder of MiniLM's shape with random weights; the experts are files of products (r = 16 on all linear layers, 200
times fewer bytes than bfloat16), `experts` of them: one is packed, the others have the signs of its entries drawn anew. BatchPool draws
from all of them; PEFT from as many as a batch has rows, all loaded before (mixed batch) or as bfloat16 directories on the local disk
(hot swap). Nothing is fetched.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertModel

from compeft_client.models.adapter import adapter_arrays, load_adapter
from compeft_client.models.batch_pool import BatchPool, PoolFigures
from compeft_client.models.pool_benchmark import SIZES, bert_with_lora
from compeft_client.packing.expert_file import ExpertFile, open_expert, read_payload_of, write_expert
from compeft_client.packing.pack import PackSettings, load_compressed, save_compressed
from compeft_client.workers import Tell, untold
from compeft_core.errors import InputError
from compeft_core.product import write_product
from compeft_proto.expert_manifest import ADAPTER
from compeft_proto.product_part import symbols_of

RANK, TIMES, WARM = 16, 200.0, 2
SKEW = 1.1
"""Exponent of Zipf's law: the expert of rank k is asked for in proportion to 1 / k ** SKEW."""
Traffic = Literal["even", "zipf"]
Seconds = list[tuple[float, float]]
"""Of each batch: of the processor, by the clock."""


@dataclass(frozen=True, slots=True)
class TrafficMeasures:
    """Requests are rows. Rates are by processor seconds of this process, so that other work on the machine does not count; p95 is of one
    batch, in seconds of the clock.   largest_difference: between a row in the batch and alone under PEFT, and the
    largest value that the experts change.   bytes of one expert, mean: ready to apply, as coded, as bfloat16.
    """

    traffic: str
    experts: int
    rows: int
    tokens: int
    requests_per_s: float
    p95_s: float
    base_requests_per_s: float
    mixed_requests_per_s: float
    mixed_p95_s: float
    hotswap_requests_per_s: float
    hotswap_p95_s: float
    largest_difference: float
    largest_change: float
    decode_s: float
    hits: int
    misses: int
    ready_bytes: float
    coded_bytes: float
    bf16_bytes: int

    @property
    def ready_times(self) -> float:
        """How many times more experts ready to apply than bfloat16 adapters fit in the same memory."""
        return self.bf16_bytes / self.ready_bytes

    @property
    def coded_times(self) -> float:
        """The same of experts as they are coded."""
        return self.bf16_bytes / self.coded_bytes


def measure_traffic(
    experts: int, traffic: Traffic, rows: int = 32, tokens: int = 16, batches: int = 20, tell: Tell = untold
) -> TrafficMeasures:
    """Make the experts and run the batches each way, on the CPU with torch's threads as they are. Errors: InputError."""
    if not 1 <= rows <= experts:
        raise InputError(f"{rows} rows want {rows} different experts, there are {experts}")
    random = np.random.default_rng(0)
    ids = torch.from_numpy(random.integers(0, SIZES["vocab_size"], (rows, tokens)))
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        tell(f"making {experts} experts")
        names = _write_experts(Path(place), experts)
        drawn = [_drawn(names, rows, traffic, random) for _ in range(batches + WARM)]
        tell("BatchPool")
        plain, ours, figures, together, without = _ours(Path(place), names, drawn, ids)
        tell("PEFT's mixed batch")
        bf16 = [_write_peft(Path(place) / name, Path(place), torch.bfloat16) for name in names[:rows]]
        mixed = _mixed(Path(place), names[:rows], ids, batches)
        tell("PEFT's hot swap")
        swapped, _ = _hotswapped(Path(place), names[:rows], ids, max(2, batches // 5))
        for name in names[:rows]:
            _write_peft(Path(place) / "exact" / name, Path(place), torch.float32)
        _, alone = _hotswapped(Path(place) / "exact", names[:rows], ids, 1)
    return TrafficMeasures(
        traffic,
        experts,
        rows,
        tokens,
        *_rates(ours, rows),
        _rates(plain, rows)[0],
        *_rates(mixed, rows),
        *_rates(swapped, rows),
        float((together - alone).abs().max()),
        float((alone - without).abs().max()),
        figures.decode_s / max(1, figures.misses),
        figures.hits,
        figures.misses,
        figures.resident_bytes / max(1, figures.resident),
        figures.coded_bytes / max(1, figures.coded),
        bf16[0],
    )


def _encoder() -> BertModel:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES), add_pooling_layer=False)
    model.train(mode=False)
    return model


def _ours(
    folder: Path, names: Sequence[str], drawn: Sequence[Sequence[str]], ids: Tensor
) -> tuple[Seconds, Seconds, PoolFigures, Tensor, Tensor]:
    """Seconds of each batch without experts and with; the pool's figures; outputs of one expert a row, and of the base."""
    base = _encoder()
    plain = _timed([() for _ in drawn], lambda _: base(input_ids=ids))
    with BatchPool(base) as pool:
        for name in names:
            pool.add(name, folder / f"{name}.expert")
        for read in pool.prefetch(dict.fromkeys(name for batch in drawn for name in batch)):
            read.result()

        def run(batch: Sequence[str]) -> Tensor:
            with pool.batch(batch):
                found: Tensor = base(input_ids=ids).last_hidden_state
            return found

        seconds = _timed(drawn, run)
        return plain, seconds, pool.figures, run(names[: ids.shape[0]]), base(input_ids=ids).last_hidden_state


def _mixed(folder: Path, names: Sequence[str], ids: Tensor, batches: int) -> Seconds:
    """PEFT with all adapters of the batch loaded: seconds of each batch."""
    model = PeftModel.from_pretrained(_encoder(), folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(str(folder / name), adapter_name=name)
    model.eval()
    return _timed([names] * (batches + WARM), lambda batch: model(input_ids=ids, adapter_names=list(batch)))


def _hotswapped(folder: Path, names: Sequence[str], ids: Tensor, batches: int) -> tuple[Seconds, Tensor]:
    """PEFT with one adapter, swapped for each row's: seconds of each batch, and what each row gives alone."""
    model = PeftModel.from_pretrained(_encoder(), folder / names[0], adapter_name="default").eval()

    def run(batch: Sequence[str]) -> Tensor:
        rows = []
        for number, name in enumerate(batch):
            hotswap_adapter(model, str(folder / name), "default", torch_device="cpu")
            rows.append(model(input_ids=ids[number : number + 1]).last_hidden_state)
        return torch.cat(rows)

    return _timed([names] * batches, run, warm=0), run(names)


def _timed(batches: Sequence[Sequence[str]], run: Callable[[Sequence[str]], object], warm: int = WARM) -> Seconds:
    seconds = []
    for batch in batches:
        began, busy = time.perf_counter(), time.process_time()
        run(batch)
        seconds.append((time.process_time() - busy, time.perf_counter() - began))
    return seconds[warm:]


def _rates(seconds: Seconds, rows: int) -> tuple[float, float]:
    """Requests a processor second of the median batch, and the 95th percentile of a batch's time by the clock."""
    busy, passed = zip(*seconds, strict=True)
    return rows / float(np.median(busy)), float(np.percentile(passed, 95))


def _drawn(names: Sequence[str], rows: int, traffic: Traffic, random: np.random.Generator) -> list[str]:
    """The experts of one batch: all different for even traffic, by Zipf's law otherwise."""
    if traffic == "even":
        return [names[i] for i in random.choice(len(names), rows, replace=False)]
    weights = 1 / np.arange(1, len(names) + 1) ** SKEW
    return [names[i] for i in random.choice(len(names), rows, p=weights / weights.sum())]


def _write_experts(folder: Path, experts: int) -> list[str]:
    """Packs one expert, whose module's component j is 0.7 ** j as strong as the first, and writes the others by its pattern."""
    model, random = bert_with_lora(RANK), np.random.default_rng(1)
    falling = (0.7 ** np.arange(RANK)).astype(np.float32)
    arrays = {}
    for name, array in adapter_arrays(model).items():
        values = 0.05 * random.standard_normal(array.shape).astype(np.float32)
        arrays[name] = values * falling[:, None] if "lora_A" in name else values
    load_adapter(model, arrays)
    model.save_pretrained(str(folder / "first"), save_embedding_layers=False)
    save_compressed(folder / "first", folder / "first.expert", PackSettings(times=TIMES))
    opened = open_expert(folder / "first.expert")
    return [_write_variant(opened, folder / f"expert-{number}.expert", random) for number in range(experts)]


def _write_variant(first: ExpertFile, file: Path, random: np.random.Generator) -> str:
    [part] = first.manifest.parts
    symbols = symbols_of(read_payload_of(first, 0), part.modules)
    signs = random.integers(0, 2, symbols.entries.size, np.int8) * 2 - 1
    payload = write_product(replace(symbols, entries=symbols.entries * signs.astype(symbols.entries.dtype)))
    made = replace(part, payload_bytes=len(payload), payload_sha256=hashlib.sha256(payload).digest())
    with file.open("wb") as stream:
        write_expert(stream, replace(first.manifest, parts=[made]), [payload], None)
    return file.stem


def _write_peft(directory: Path, packed: Path, dtype: torch.dtype) -> int:
    """The expert as its trainer saved it: a PEFT directory of rank RANK; the bytes of its tensors."""
    loaded = load_compressed(packed / f"{directory.name}.expert")
    tensors = {}
    for key, values in loaded.tensors[ADAPTER].items():
        shape = (RANK, values.shape[1]) if "lora_A" in key else (values.shape[0], RANK)
        tensors[key] = torch.zeros(shape, dtype=dtype)
        tensors[key][: values.shape[0], : values.shape[1]] = torch.from_numpy(values.astype(np.float32)).to(dtype)
    fields = json.loads(loaded.config) | {"r": RANK, "lora_alpha": 2 * RANK, "rank_pattern": {}, "alpha_pattern": {}}
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps(fields))
    save_file(tensors, directory / ADAPTER, {"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())
