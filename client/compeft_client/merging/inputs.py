"""Experts that are to be merged: read from expert files or PEFT directories, and held against each other before anything is computed.

Full checkpoints, DoRA, and adapters that start from their base model (PiSSA ...) are refused: their files alone do not hold what they
changed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compeft_client.checkpoints.peft_fields import Purpose, check_fields, differing_field
from compeft_client.checkpoints.safetensors_file import NUMPY, Stored, read_bytes, read_values
from compeft_client.checkpoints.source import Source, read_source
from compeft_client.checkpoints.source_check import notes_of
from compeft_client.packing.expert_file import ExpertFile, is_expert_file, open_expert
from compeft_client.packing.pack import load_compressed
from compeft_client.workers import Tell, untold
from compeft_core.errors import FormatError, InputError
from compeft_proto.expert_manifest import ADAPTER_CONFIG, FLOATS, MODEL

Tensors = Mapping[str, NDArray[np.generic]]
BASE = "base_model_name_or_path"
SCALES = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
WAYS_OUT = {
    **dict.fromkeys(
        SCALES,
        "entries of factors of other scale or rank do not compare: use core_average, core_ties, knots_ties, tsv_m or iso_c",
    ),
    BASE: "experts of different base models cannot be merged; if it is one model under two names, such as a local copy: --same-base",
    "alora_invocation_tokens": "one is switched on by its tokens, the other by others or always",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One expert to merge: where it lies (opened, or read as a directory) and what its configuration says."""

    path: Path
    opened: ExpertFile | None
    source: Source | None
    config: bytes
    fields: Mapping[str, object]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """How experts are read. init: where packed ones started; same_base: their base models' names may differ; tell: hears of progress."""

    init: str | None = None
    same_base: bool = False
    tell: Tell = untold


@dataclass(frozen=True, slots=True)
class MergedAdapter:
    """A merged adapter: tensors by file, and its configuration as JSON. init: what packs it again; notes: what its maker should know."""

    files: dict[str, dict[str, NDArray[np.generic]]]
    config: bytes
    init: str | None
    notes: Sequence[str]


def read_candidates(paths: Sequence[Path], purpose: Purpose, *, same_base: bool = False) -> list[Candidate]:
    """The experts at these paths. Errors: InputError if they are fewer than two, no adapters, or their configurations do not agree."""
    if len(paths) < 2:
        raise InputError(f"{len(paths)} experts given, merging needs two at least")
    found = [_candidate(path) for path in paths]
    first = found[0]
    for candidate in found:
        if candidate.fields.get("peft_type") == first.fields.get("peft_type"):
            check_fields(candidate.fields, purpose, str(candidate.path))
        ours = {**candidate.fields, BASE: first.fields.get(BASE)} if same_base else candidate.fields
        if name := differing_field(ours, first.fields, purpose):
            raise InputError(
                f"{name} is {first.fields.get(name)!r} in {first.path} and {candidate.fields.get(name)!r} in {candidate.path}: "
                f"{WAYS_OUT.get(name, 'they cannot be merged')}"
            )
    return found


def notes_by_path(candidates: Sequence[Candidate]) -> list[str]:
    """The notes of all experts, each behind its path."""
    return [f"{candidate.path}: {note}" for candidate in candidates for note in candidate.notes]


def tensors_of(candidate: Candidate, init: str | None) -> dict[str, Tensors]:
    """All tensors by file and name, floats as float32. Errors: those of reading."""
    if candidate.opened:
        return dict(load_compressed(candidate.path, init=init).tensors)
    if candidate.source is None:
        return {}
    files = candidate.source.files
    return {file: {t.name: _values(t) for t in header.tensors.values()} for file, header in files.items()}


def _values(tensor: Stored) -> NDArray[np.generic]:
    if tensor.dtype in FLOATS:
        return np.concatenate([np.zeros(0, np.float32), *read_values(tensor)]).reshape(tensor.shape)
    raw = np.frombuffer(read_bytes(tensor), NUMPY[tensor.dtype])
    return (raw.astype(np.bool_) if tensor.dtype == "BOOL" else raw).reshape(tensor.shape)


def _candidate(path: Path) -> Candidate:
    if is_expert_file(path):
        opened = open_expert(path)
        if MODEL in opened.manifest.files:
            raise InputError(f"{path} is a full checkpoint: merge takes adapters")
        _check_config(path, opened.manifest.config)
        return Candidate(path, opened, None, opened.manifest.config, _fields(path, opened.manifest.config))
    source = read_source(path)
    if not source.is_adapter:
        raise InputError(f"{path} is a full checkpoint: merge takes adapters")
    _check_config(path, source.config)
    return Candidate(path, None, source, source.config, source.fields, notes_of(source))


def _check_config(path: Path, config: bytes) -> None:
    if not config:
        raise InputError(
            f"{path} is a LoRA without {ADAPTER_CONFIG} (kohya's or diffusers' names): merge takes PEFT adapters; load it with diffusers "
            "and save it by save_lora_adapter, or merge there by set_adapters"
        )


def _fields(path: Path, config: bytes) -> Mapping[str, object]:
    try:
        fields = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} holds a configuration that is not JSON") from error
    if not isinstance(fields, dict):
        raise FormatError(f"{path} holds a configuration that is not a JSON object")
    return fields


def merged_beside(
    paths: Sequence[Path], name: str, values: Sequence[NDArray[np.generic]], weights: Sequence[float]
) -> NDArray[np.generic]:
    """A tensor that is not a factor (a head, a bias): itself if all experts agree, else the weighted mean.

    Errors: InputError if shapes differ, or values do that are not floats.
    """
    for path, value in zip(paths, values, strict=True):
        if value.shape != values[0].shape or value.dtype != values[0].dtype:
            raise InputError(
                f"{name} has shape {list(values[0].shape)} in {paths[0]} and {list(value.shape)} in {path}: no mean of them"
            )
    if all(np.array_equal(value, values[0]) for value in values):
        return values[0]
    if values[0].dtype != np.float32:
        raise InputError(f"{name} differs between experts and holds {values[0].dtype}: no mean of them")
    total = math.fsum(weights)
    mean = sum((w / total * v.astype(np.float64) for w, v in zip(weights, values, strict=True)), np.zeros(values[0].shape))
    return mean.astype(np.float32)
