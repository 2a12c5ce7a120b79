"""How much a base model's output minds an error in each of its modules: a small file a base, and the weights that the packer takes from it.

The file is JSON: `{"format": "compeft-base-statistics", "version": 1, "base": NAME, "weights_digest": HEX, "text_digest": HEX,
"modules": {MODULE: {"parameters": N, "gradient": G}}}`. G is the root mean square, over the tokens of a text, of the gradient of the
base's log-likelihood at the module's output. Only packing reads it: no expert file needs it to be unpacked.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compeft_client.checkpoints.lora_modules import PREFIX, LoraModule
from compeft_client.durable_files import read_file, write_durably
from compeft_core.errors import FormatError, InputError, LimitError

FORMAT, VERSION = "compeft-base-statistics", 1
MAX_BYTES = 64 * 2**20
POWER = 0.5
"""A module's weight is its gradient to this power: of the powers tried, the one that kept the most (docs/decisions/0015)."""
LEAST = 1e-3
"""Weights are at least this share of their geometric mean: a module without a gradient still gets some bits."""
MOST_PREFIX = 4


@dataclass(frozen=True, slots=True)
class ModuleStatistics:
    """One module of the base: entries of its weight, and the rms of the gradient at its output's entries."""

    parameters: int
    gradient: float


@dataclass(frozen=True, slots=True)
class BaseStatistics:
    """Of one base model over one text. base: its name or folder, for people; the digests are of its weights and of the text."""

    base: str
    weights_digest: bytes
    text_digest: bytes
    modules: Mapping[str, ModuleStatistics]


def cache_path(weights_digest: bytes) -> Path:
    """Where the statistics of a base are kept: `$XDG_CACHE_HOME`, else `~/.cache`, `/compeft/base-statistics/DIGEST.json`."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "compeft" / "base-statistics" / f"{weights_digest.hex()}.json"


def write_statistics(path: Path, statistics: BaseStatistics) -> None:
    """Write the file, whole or not at all; its folder is made."""
    modules = {name: {"parameters": m.parameters, "gradient": m.gradient} for name, m in statistics.modules.items()}
    digests = {"weights_digest": statistics.weights_digest.hex(), "text_digest": statistics.text_digest.hex()}
    values = {"format": FORMAT, "version": VERSION, "base": statistics.base, **digests, "modules": modules}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, (json.dumps(values, indent=1) + "\n").encode())


def read_statistics(path: Path) -> BaseStatistics:
    """Read what `write_statistics` wrote. Errors: InputError if it cannot be read; FormatError, LimitError for anything else in it."""
    if path.exists() and path.stat().st_size > MAX_BYTES:
        raise LimitError(f"{path} has {path.stat().st_size:,} bytes, statistics of a base model at most {MAX_BYTES:,}")
    octets = read_file(path)
    try:
        values = json.loads(octets)
        if values["format"] != FORMAT or values["version"] != VERSION:
            raise FormatError(
                f"{path} has format {values['format']!a:.40} {values['version']!a:.10}, expected {FORMAT} {VERSION}"
            )
        modules = {str(name): ModuleStatistics(*_numbers(m)) for name, m in values["modules"].items()}
        digests = bytes.fromhex(values["weights_digest"]), bytes.fromhex(values["text_digest"])
        return BaseStatistics(str(values["base"])[:256], *digests, modules)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path} is not a file of `compeft base-stats`: {str(error)[:80]}") from error


def _numbers(values: Mapping[str, object]) -> tuple[int, float]:
    parameters, gradient = values["parameters"], values["gradient"]
    if type(parameters) is not int or parameters < 1:
        raise ValueError(f"parameters {parameters!a:.20}, expected a whole number above 0")
    if not isinstance(gradient, int | float) or not math.isfinite(gradient) or gradient < 0:
        raise ValueError(f"gradient {gradient!a:.20}, expected a number of at least 0")
    return parameters, float(gradient)


def product_weights(statistics: BaseStatistics, modules: Sequence[LoraModule]) -> list[float]:
    """One weight for each product, in the order of the modules: relative to the geometric mean of those that the base has.

    Modules of other kinds than the base's statistics cover (a parameter of several experts) have the mean's weight, 1.
    Errors: InputError if the base has none of the modules, or one of another size.
    """
    names = [module.name.removeprefix(PREFIX) for module in modules]
    known = dict(zip(names, _in_base(names, statistics.modules), strict=True))
    logs = {}
    for module, name in zip(modules, names, strict=True):
        found = known[name]
        if found is not None and found.gradient > 0:
            rows, columns = module.sides
            if rows * columns != found.parameters:
                raise InputError(
                    f"module {name} is {rows} x {columns} in the adapter and has {found.parameters:,} entries in {statistics.base}: "
                    "give the base model that the adapter was trained on"
                )
            logs[name] = POWER * math.log(found.gradient)
    if not logs:
        raise InputError(
            f"{statistics.base} has no module {names[0] if names else ''}: give the base that the adapter was trained on"
        )
    middle = math.fsum(logs.values()) / len(logs)
    weights = [max(LEAST, math.exp(logs.get(name, middle) - middle)) for name in names]
    return [weight for weight, module in zip(weights, modules, strict=True) for _ in range(module.slices)]


def _in_base(names: Sequence[str], base: Mapping[str, ModuleStatistics]) -> list[ModuleStatistics | None]:
    """What the base has of each name. A wrapper around either model puts the same words before all names: the first renaming that finds a
    module is taken for all. Example: `bert.encoder.layer.0.output.dense` of a classifier is `encoder.layer.0.output.dense` of the encoder.
    """
    for name in names:
        words = name.split(".")
        for dropped in range(min(MOST_PREFIX, len(words) - 1) + 1):
            if ".".join(words[dropped:]) in base:
                return [base.get(other.split(".", dropped)[-1]) for other in names]
        added = next((n.removesuffix(name) for n in base if n.endswith(f".{name}")), None)
        if added is not None:
            return [base.get(added + other) for other in names]
    return [None] * len(names)
