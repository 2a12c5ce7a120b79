"""How alike two experts are, module by module: cosine, norms, and the supports and signs of what is not zero.

LoRA's factors are compared by what they do: the cosine of the products s B A, on thin factors. A's random start would dominate a
comparison of entries, and B A is the same for many B and A. Where a file holds only how far the factors moved from a start that is not
at hand, their moves are compared entry by entry instead, as all other tensors are: two tensors count if they have one name, one shape,
and one start. An expert file holds how far each tensor went; a directory holds where it arrived.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compeft_client.checkpoints.initial_values import Start, digest_of, initial_vector, read_start, seed_bound
from compeft_client.checkpoints.lora_modules import PREFIX, LoraModule, factors_of, products_in, scaling_of
from compeft_client.checkpoints.lora_names import NAMES, alpha_names
from compeft_client.checkpoints.safetensors_file import NUMPY, read_values, to_float32
from compeft_client.checkpoints.source import fields_of, read_source
from compeft_client.packing.expert_file import ExpertFile, is_expert_file, open_expert, read_payload_of
from compeft_client.packing.part_codec import decode_change, tensors_in
from compeft_client.packing.tensor_rules import FACTORS, ZERO_FACTORS
from compeft_core import Tensor, Vector
from compeft_core.errors import InputError
from compeft_proto.errors import WrongBaseError
from compeft_proto.expert_manifest import ADAPTER, FLOATS, FilePart

ZERO = "zero"
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]
"""left (m, r) and right (r, n) of a product."""


@dataclass(frozen=True, slots=True, eq=False)
class Walked:
    """How far a tensor went: flat float32, its shape, and from where (equal text: the same start)."""

    values: Vector
    shape: tuple[int, ...]
    start: str


@dataclass(frozen=True, slots=True)
class Alike:
    """Sums over tensors a and b of one module, from which the measures follow.

    dot, squares_a, squares_b: sums of products.   both, either: entries where both, or one at least, are not zero.
    agree: entries where both are and have one sign.
    """

    dot: float = 0.0
    squares_a: float = 0.0
    squares_b: float = 0.0
    both: int = 0
    either: int = 0
    agree: int = 0

    @property
    def cosine(self) -> float:
        """The dot product over |a| |b|; 0 if one is zero."""
        return _ratio(self.dot, math.sqrt(self.squares_a * self.squares_b))

    @property
    def norm_ratio(self) -> float:
        """|b| / |a|; 0 if a is zero."""
        return math.sqrt(_ratio(self.squares_b, self.squares_a))

    @property
    def jaccard(self) -> float:
        """Entries where both are not zero, of those where one is."""
        return _ratio(self.both, self.either)

    @property
    def sign_agreement(self) -> float:
        """Of the entries where both are not zero, those with one sign."""
        return _ratio(self.agree, self.both)

    @property
    def conflicts(self) -> int:
        """Entries where both are not zero and signs differ."""
        return self.both - self.agree

    def __add__(self, other: "Alike") -> "Alike":
        pairs = zip(_sums(self), _sums(other), strict=True)
        return Alike(*(x + y for x, y in pairs))  # type: ignore[arg-type]  # counts stay int, sums stay float


@dataclass(frozen=True, slots=True)
class Difference:
    """Two experts compared: by module, all together, and the names left out, with the reason.

    The total is over LoRA's factors where there are any: heads, norms and embeddings are so large that they would drown them.
    """

    modules: Mapping[str, Alike]
    total: Alike
    left_out: Mapping[str, str]


def diff(a: Path, b: Path, init: str | None = None) -> Difference:
    """Compare two expert files or directories. Errors: InputError if they share nothing; those of reading them."""
    start = read_start(init)
    first, second = walk(a, start), walk(b, start)
    reasons = {name: _reason(first.get(name), second.get(name)) for name in sorted(set(first) | set(second))}
    tensors = {name: alike(first[name].values, second[name].values) for name, reason in reasons.items() if not reason}
    modules = _products(a, b, first, second)
    tensors = {name: one for name, one in tensors.items() if _module(name) not in modules}
    reasons = {name: reason for name, reason in reasons.items() if _module(name) not in modules}
    if not tensors and not modules:
        raise InputError(f"{a} and {b} share no comparable tensor: {next(iter(reasons.values()), 'both are empty')}")
    compared = list(modules.values())
    for name, one in tensors.items():
        modules[_module(name)] = modules.get(_module(name), Alike()) + one
    factors = [one for name, one in tensors.items() if name.endswith(FACTORS)]
    total = sum([*compared, *factors] or tensors.values(), Alike())
    return Difference(modules, total, {name: reason for name, reason in reasons.items() if reason})


def _products(a: Path, b: Path, first: Mapping[str, Walked], second: Mapping[str, Walked]) -> dict[str, Alike]:
    """By module: sums over the products s B A of the modules whose factors both experts hold whole, of any ranks."""
    ours, theirs = _factors(a, first), _factors(b, second)
    found = {}
    for module in sorted(set(ours) & set(theirs)):
        if len(ours[module]) == len(theirs[module]) and _sides(ours[module][0]) == _sides(theirs[module][0]):
            found[_module(f":{module}")] = sum(map(alike_products, ours[module], theirs[module]), Alike())
    return found


def _factors(path: Path, walked: Mapping[str, Walked]) -> dict[str, list[Pair]]:
    """(left, right) of each product of an expert, float64 with the scaling in left; only of factors that are there whole."""
    fields = fields_of_expert(path)
    whole = {name.partition(":")[2]: w for name, w in walked.items() if w.start == ZERO and name.startswith(f"{ADAPTER}:")}
    found = {}
    for module in products_in({name: w.shape for name, w in whole.items()}, fields):
        scaling = _scaling(fields, module, whole)
        a, b = whole[module.a].values.astype(np.float64), whole[module.b].values.astype(np.float64)
        slices = factors_of(module, a.reshape(module.a_shape), b.reshape(module.b_shape))
        found[module.name] = [(scaling * left.astype(np.float64), right.astype(np.float64)) for left, right in slices]
    return found


def _scaling(fields: Mapping[str, object], module: LoraModule, whole: Mapping[str, Walked]) -> float:
    """By LoRA's configuration; without one, by the alpha beside the factors, and 1 if it is absent; 1 for LoHa and LoKr."""
    if fields.get("peft_type") != "LORA":
        return 1.0
    if "lora_alpha" in fields or "alpha_pattern" in fields:
        return scaling_of(fields, module.name.removeprefix(PREFIX), module.rank)
    alpha = next((whole[name].values for name in alpha_names(module.name) if name in whole), None)
    return float(alpha[0]) / module.rank if alpha is not None and alpha.size == 1 else 1.0


def _sides(pair: Pair) -> tuple[int, int]:
    return pair[0].shape[0], pair[1].shape[1]


def alike_products(a: Pair, b: Pair) -> Alike:
    """The sums of two products left @ right, never built: <X, Y> = sum of (Lx' Ly) * (Rx Ry')."""

    def dot(x: Pair, y: Pair) -> float:
        return float(np.sum((x[0].T @ y[0]) * (x[1] @ y[1].T)))

    return Alike(dot=dot(a, b), squares_a=dot(a, a), squares_b=dot(b, b))


def alike(a: Vector, b: Vector) -> Alike:
    """The sums of two flat vectors of one length."""
    on_a, on_b = a != 0, b != 0
    both = on_a & on_b
    return Alike(
        dot=float(np.dot(a, b)),
        squares_a=float(np.dot(a, a)),
        squares_b=float(np.dot(b, b)),
        both=int(both.sum()),
        either=int((on_a | on_b).sum()),
        agree=int((both & (np.signbit(a) == np.signbit(b))).sum()),
    )


def walk(path: Path, start: Start) -> dict[str, Walked]:
    """Every float tensor of an expert file or a directory, by file and name. Errors: those of reading it."""
    found = _of_file(open_expert(path), start) if is_expert_file(path) else _of_directory(path)
    return {f"{file}:{name}": _from_start(walked, start, file, name) for file, name, walked in found}


def fields_of_expert(path: Path) -> Mapping[str, object]:
    """What the configuration of an expert file or a directory says; nothing if it has none. Errors: those of reading."""
    if not is_expert_file(path):
        return read_source(path).fields
    manifest = open_expert(path).manifest
    if not manifest.config:
        return {"peft_type": "LORA"} if NAMES in manifest.metadata.get(ADAPTER, {}) else {}
    return fields_of(manifest.config, path)


def _of_directory(path: Path) -> Iterator[tuple[str, str, Walked]]:
    for file, header in read_source(path).files.items():
        for t in header.tensors.values():
            if t.dtype in FLOATS:
                values = np.concatenate([np.zeros(0, np.float32), *read_values(t)])
                yield file, t.name, Walked(values, t.shape, ZERO)


def _of_file(opened: ExpertFile, start: Start) -> Iterator[tuple[str, str, Walked]]:
    for number, part in enumerate(opened.manifest.parts):
        payload = read_payload_of(opened, number)
        if part.coding is None:
            for tensor, dtype, found in tensors_in(part, payload, start, opened.path.name):
                if dtype in FLOATS:
                    values = to_float32(dtype, np.frombuffer(found, NUMPY[dtype])) if isinstance(found, bytes) else found
                    yield part.file, tensor.name, Walked(values, tensor.shape, ZERO)
            continue
        _check_start(part, start)
        vector, at = decode_change(part, payload), 0
        for tensor in part.layout.tensors:
            yield part.file, tensor.name, Walked(vector[at : at + tensor.size], tensor.shape, _start_of(part, tensor, start))
            at += tensor.size


def _check_start(part: FilePart, start: Start) -> None:
    if part.initial_digest and start.directory:
        digest = digest_of(part.layout, initial_vector(part.file, part.layout, start))
        if digest != part.initial_digest:
            raise WrongBaseError(f"--init is not what an expert was packed against: {part.initial_digest.hex()[:16]} is needed")


def _start_of(part: FilePart, tensor: Tensor, start: Start) -> str:
    if part.seed is not None and seed_bound(part.file, tensor.name, tensor.shape):
        return f"seed {part.seed}"
    if part.initial_digest and start.directory and start.knows(part.file, tensor.name, tensor.shape):
        return _name(start)
    if part.initial_digest and not tensor.name.endswith(ZERO_FACTORS):
        return f"state {part.initial_digest.hex()[:16]}"
    return ZERO


def _from_start(walked: Walked, start: Start, file: str, name: str) -> Walked:
    """What arrived somewhere -> how far it went, where the start is given."""
    if walked.start != ZERO or not start.knows(file, name, walked.shape):
        return walked
    began = np.concatenate([np.zeros(0, np.float32), *start.pieces(file, Tensor(name, walked.shape))])
    return replace(walked, values=walked.values - began, start=_name(start))


def _name(start: Start) -> str:
    return "the directory given" if start.directory else f"seed {start.seed}"


def _reason(a: Walked | None, b: Walked | None) -> str:
    """Why two tensors cannot be compared; empty if they can."""
    if a is None or b is None:
        return "only one of them has it"
    if a.shape != b.shape:
        return f"shapes {list(a.shape)} and {list(b.shape)} differ"
    return "" if a.start == b.start else f"one starts from {a.start}, the other from {b.start}: give --init"


def _module(name: str) -> str:
    for suffix in (*FACTORS, ".weight", ".bias"):
        name = name.removesuffix(suffix)
    return name.partition(":")[2].removeprefix("base_model.model.")


def _sums(a: Alike) -> Sequence[float]:
    return a.dot, a.squares_a, a.squares_b, a.both, a.either, a.agree


def _ratio(over: float, under: float) -> float:
    return over / under if under else 0.0
