"""Everything that a machine with a GPU has to show, in one run under eight minutes: `make gpu`, or `python -m benchmarks.gpu`.

Installs nothing and fetches nothing. Parts: the device codec gives the core's bytes; compress and decode at 20 and 160 million parameters;
products of a packed LoRA decoded and applied; switching and composing in a pool; one federated round of the language-model example, with
peak memory and what compression adds to an epoch. Writes one JSON and a Markdown table (--out, by default docs/benchmarks). A part that
fails is in the table as failed, and the exit code is 1.

    python -m benchmarks.gpu --model /models/SmolLM2-135M-Instruct
    python -m benchmarks.gpu --device cpu --quick --out FOLDER           the same code at small sizes, without a GPU
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import device as speeds
from benchmarks.gpu_round import federated_round
from compeft_client.models.device_codec import apply_on_device, compress_on_device
from compeft_client.models.expert_pool import ExpertPool
from compeft_client.models.pool_benchmark import measure_pool
from compeft_client.packing.pack import PackSettings, save_compressed
from compeft_core import Compression, ScaleRule, add_to, compress, encode, parse

OUT = Path("docs") / "benchmarks"
SIZES, QUICK_SIZES = (20_000_000, 160_000_000), (300_000,)
RULES: tuple[ScaleRule, ...] = ("norm", "bounded_norm", "mean_magnitude", "alpha_sigma")
DENSITIES = (0.001, 0.05, 0.5)
AT = Compression(0.05)
AIMS_MS = {"compress_ms": 3.0, "apply_ms": 2.0}
"""At 20 million parameters on one data-centre GPU."""
Figures = dict[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Given:
    """device: "cuda" or "cpu". quick: small sizes. model: of the federated round; "tiny" makes one on the spot."""

    device: str
    quick: bool
    model: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes: seconds instead of minutes")
    parser.add_argument("--model", default="tiny", help="a language model's folder for the federated round")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of gpu.json and gpu.md")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: --device cpu --quick runs the same code at small sizes", file=sys.stderr)
        return 2
    found = {
        "machine": machine(asked.device),
        "quick": asked.quick,
        "parts": run_parts(Given(asked.device, asked.quick, asked.model)),
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = as_markdown(found)
    (asked.out / "gpu.md").write_text(page, encoding="utf-8")
    print(page)
    return 1 if any("failed" in part for part in found["parts"].values()) else 0  # type: ignore[attr-defined]  # a dict of dicts


def run_parts(given: Given) -> dict[str, Figures]:
    """Each part's figures, or `failed` with its last line."""
    found = {}
    for name, part in PARTS.items():
        started = time.perf_counter()
        try:
            figures = part(given)
        except (RuntimeError, ValueError, OSError, AssertionError) as error:
            traceback.print_exception(error)
            figures = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"}
        found[name] = {**figures, "part_seconds": round(time.perf_counter() - started, 1)}
        print(f"{name}: {found[name]}", flush=True)
    return found


def identical(given: Given) -> Figures:
    """Bytes of the device codec beside the core's, and states that both lead to, over scale rules, densities and types."""
    checked = 0
    shapes = speeds.layout(270_000 if given.quick else 2_000_000)
    generator = torch.Generator(given.device).manual_seed(1)
    for dtype in (torch.float32, torch.bfloat16):
        vector = torch.randn(shapes.size, device=given.device, generator=generator).to(dtype)
        for rule in RULES:
            for density in DENSITIES:
                how = Compression(density, rule)
                blob = compress_on_device(shapes, vector, how)
                if blob != encode(compress(shapes, vector.float().cpu().numpy(), how)):
                    raise AssertionError(f"{rule} at {density} of {dtype}: the device's bytes are not the core's")
                state = torch.ones(shapes.size, device=given.device)
                apply_on_device(parse(blob), state)
                expected = torch.ones(shapes.size).numpy()
                add_to(parse(blob), expected)
                if not (state.cpu().numpy() == expected).all():
                    raise AssertionError(f"{rule} at {density} of {dtype}: the device's state is not the core's")
                checked += 1
    return {"identical": checked, "of": checked}


def codec_speed(given: Given) -> Figures:
    """Milliseconds to compress a bfloat16 task vector at 5 % and to apply it to a float32 state, the best of several."""
    figures: Figures = {}
    for size in QUICK_SIZES if given.quick else SIZES:
        shapes = speeds.layout(size)
        generator = torch.Generator(given.device).manual_seed(0)
        vector = torch.randn(shapes.size, device=given.device, dtype=torch.bfloat16, generator=generator)
        state, kept = torch.ones(shapes.size, device=given.device), round(AT.density * shapes.size)
        encoded = parse(compress_on_device(shapes, vector, AT))
        name = f"{size / 1e6:g}M"
        figures[f"{name}_compress_ms"] = _ms(partial(compress_on_device, shapes, vector, AT), given)
        figures[f"{name}_apply_ms"] = _ms(partial(apply_on_device, encoded, state), given)
        figures[f"{name}_topk_ms"] = _ms(partial(torch.topk, vector.abs(), kept, sorted=False), given)
    return figures | {f"aim_{name}_at_20M": aim for name, aim in AIMS_MS.items()}


def products(given: Given) -> Figures:
    """A LoRA packed as products: read and applied to a model on the device (cold), and applied again from memory (warm)."""
    from compeft_client.models import pool_benchmark

    model = pool_benchmark.bert_with_lora(2 if given.quick else 64).to(given.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.copy_((torch.randn(parameter.shape, generator=generator) * 0.01).to(parameter.device))
        model.save_pretrained(folder / "one", save_embedding_layers=False)
        save_compressed(folder / "one", folder / "one.expert", PackSettings())
        with ExpertPool(model) as pool:
            pool.add("one", folder / "one.expert")
            cold = _clock(lambda: pool.activate("one"), given)
            pool.deactivate()
            warm = _clock(lambda: pool.activate("one"), given)
            size = (folder / "one.expert").stat().st_size
    parameters = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    return {"parameters": parameters, "file_bytes": size, "decode_and_apply_ms": cold, "apply_again_ms": warm}


def pool(given: Given) -> Figures:
    """Milliseconds to switch between packed experts, beside PEFT's own hotswap of bfloat16 files."""
    found = measure_pool(100_000 if given.quick else 5_000_000, 2 if given.quick else 16, 0.05, given.device)
    return {
        "parameters": found.parameters,
        "expert_bytes": found.expert_bytes,
        "switch_ms": 1000 * found.switch_s,
        "switch_from_disk_ms": 1000 * found.switch_from_disk_s,
        "peft_hotswap_ms": 1000 * found.bf16_hotswap_s,
    }


def one_round(given: Given) -> Figures:
    """One round of the language-model example, four sites, in bfloat16 on CUDA."""
    changes: dict[str, object] = {"model": given.model}
    if given.quick:
        changes |= {"train-rows": 4, "test-rows": 4, "max-tokens": 8}
    return federated_round(changes)


PARTS: Mapping[str, Callable[[Given], Figures]] = {
    "device codec against the core": identical,
    "codec speed": codec_speed,
    "products of a packed LoRA": products,
    "pool": pool,
    "federated round of a language model": one_round,
}


def machine(device: str) -> dict[str, str]:
    """What it ran on."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU tensors, no GPU"
    return {"device": name, "torch": torch.__version__, "cuda": str(torch.version.cuda)}


def as_markdown(found: Mapping[str, object]) -> str:
    """The page docs/benchmarks/gpu.md."""
    where, parts = found["machine"], found["parts"]
    assert isinstance(where, dict)
    assert isinstance(parts, dict)
    size = ", small sizes (--quick): these figures say nothing about speed" if found["quick"] else ""
    lines = [
        f"Run on {where['device']}, torch {where['torch']}{size}.",
        "",
        "# On a GPU",
        "",
        "`make gpu` prints and writes this page and `gpu.json`. It installs nothing.",
        "",
        "| part | figure | value |",
        "|---|---|---|",
    ]
    for part, figures in parts.items():
        lines += [f"| {part} | {name} | {_shown(value)} |" for name, value in figures.items()]
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _ms(run: Callable[[], object], given: Given) -> float:
    return 1000 * speeds.best_s(run, given.device)


def _clock(run: Callable[[], object], given: Given) -> float:
    """Milliseconds of one run, until the device has finished."""
    started = time.perf_counter()
    run()
    if given.device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
