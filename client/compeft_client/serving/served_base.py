"""The base model that an engine serves, and whether an expert was made for it: digests of its weights and of its tokenizer.

A packed expert states them in the metadata of its adapter (`compeft pack --base FOLDER`), where its signature covers them; an expert
composed in rounds is bound to the weights digest in its genesis.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compeft_client.checkpoints.base_model_digest import weights_digest
from compeft_client.durable_files import read_file
from compeft_core.errors import FormatError, InputError
from compeft_proto.errors import WrongBaseError
from compeft_proto.round_task import canonical_json

WEIGHTS, TOKENIZER = "compeft.base_weights", "compeft.base_tokenizer"
"""Keys in the metadata of an expert file's adapter: digests in hexadecimal digits."""
TOKENIZER_FILE = "tokenizer.json"
PASSING = ("truncation", "padding")
"""Parts of tokenizer.json that say how it was used last, not which tokens it makes."""


@dataclass(frozen=True, slots=True)
class ServedBase:
    """Digests of 32 bytes; empty: unknown, and then nothing is compared."""

    weights: bytes = b""
    tokenizer: bytes = b""


UNKNOWN_BASE = ServedBase()


def served_base(folder: Path) -> ServedBase:
    """The digests of a model's folder; its weights are read once. No tokenizer.json: none. Errors: InputError, FormatError, LimitError."""
    tokenizer = folder / TOKENIZER_FILE
    return ServedBase(weights_digest(folder), tokenizer_digest(tokenizer) if tokenizer.exists() else b"")


def tokenizer_digest(file: Path) -> bytes:
    """SHA-256 (32 bytes) of a tokenizer.json as canonical JSON, without PASSING. Errors: InputError, FormatError."""
    try:
        fields = json.loads(read_file(file))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise FormatError(f"{file} holds a JSON {type(fields).__name__}, expected an object")
    return hashlib.sha256(canonical_json({name: value for name, value in fields.items() if name not in PASSING})).digest()


def statements_of(base: ServedBase) -> dict[str, str]:
    """What an expert's metadata say of its base."""
    said = {WEIGHTS: base.weights.hex(), TOKENIZER: base.tokenizer.hex()}
    return {key: value for key, value in said.items() if value}


def check_statements(metadata: Mapping[str, str], base: ServedBase, what: str, required: bool) -> None:
    """Whether an expert states the base that is served. Errors: WrongBaseError; with `required`, InputError if it states none."""
    for key, mine, noun in ((WEIGHTS, base.weights, "weights"), (TOKENIZER, base.tokenizer, "tokenizer")):
        said = metadata.get(key, "")
        if said and mine and said != mine.hex():
            raise WrongBaseError(f"{what} is for a base model with {noun} {said[:16]}, served is one with {mine.hex()[:16]}")
        if required and mine and not said:
            raise InputError(f"{what} does not say which base {noun} it is for: pack it with --base FOLDER, or allow it")
