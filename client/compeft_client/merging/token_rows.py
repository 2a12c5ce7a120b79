"""Rows that PEFT trained for single tokens (`trainable_token_indices`), merged by token: a row of one expert alone stays as it is.

A file has one matrix for each embedding, its rows in the order of the configuration's indices; the rows are the tokens' whole embeddings,
not changes of them. Example: tokens [250, 251] and [10, 250] become [10, 250, 251], with the mean of both experts' rows for 250.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compeft_core.errors import InputError

ENDING = ".token_adapter.trainable_tokens_delta"
FIELD = "trainable_token_indices"


def indices_of(fields: Mapping[str, object], name: str, rows: int, path: Path) -> list[int]:
    """The tokens of the rows of tensor `name`. Errors: InputError if the configuration does not say them."""
    said, layer = fields.get(FIELD), name.removesuffix(ENDING)
    if isinstance(said, dict):
        said = next((v for k, v in said.items() if layer == k or layer.endswith(f".{k}")), None)
    if not isinstance(said, list) or len(said) != rows or not all(isinstance(i, int) for i in said) or len(set(said)) != rows:
        raise InputError(f"{path} has {rows} rows of trained tokens in {name!r}, its {FIELD} is {str(fields.get(FIELD))[:80]}")
    return said


def merge_rows(
    found: Sequence[tuple[Sequence[int], NDArray[np.floating]]], weights: Sequence[float]
) -> tuple[list[int], NDArray[np.float32]]:
    """All tokens, ascending, and their rows: of each token the weighted mean over the experts that trained it.

    Errors: InputError if rows have different widths.
    """
    if len({rows.shape[1:] for _, rows in found}) > 1:
        raise InputError(
            f"rows of trained tokens have widths {sorted({rows.shape[-1] for _, rows in found})}: not of one base model"
        )
    tokens = sorted({token for indices, _ in found for token in indices})
    merged = []
    for token in tokens:
        own = [
            (w, rows[list(indices).index(token)]) for w, (indices, rows) in zip(weights, found, strict=True) if token in indices
        ]
        total = math.fsum(w for w, _ in own)
        merged.append(sum(w / total * row.astype(np.float64) for w, row in own) if total else own[0][1])
    return tokens, np.asarray(merged, np.float32)


def merged_field(fields: Mapping[str, object], tokens: Mapping[str, Sequence[int]]) -> object:
    """`trainable_token_indices` of the merged adapter, in the form that the first expert's configuration has."""
    said = fields.get(FIELD)
    if isinstance(said, dict):
        return {
            k: next((list(v) for n, v in tokens.items() if n.removesuffix(ENDING).endswith(k)), old) for k, old in said.items()
        }
    return list(next(iter(tokens.values()))) if tokens else said
