"""How good a directory's adapter is, by a command of the user's: how `tune` and `blend` ask it, and where they remember what it said."""

import hashlib
import json
import math
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from compeft_client.checkpoints.safetensors_file import read_values
from compeft_client.checkpoints.source import read_source
from compeft_client.durable_files import write_durably
from compeft_client.packing.tensor_rules import ZERO_FACTORS
from compeft_core.errors import FormatError, InputError, NotFiniteError
from compeft_proto.expert_manifest import ADAPTER

Measure = Callable[[Path], float]
Tensors = dict[str, NDArray[np.float32]]


def measure_by(command: str) -> Measure:
    """Runs the command for a directory, in place of {dir} and as COMPEFT_DIRECTORY; its last line is the metric, higher is better.

    Errors: InputError, here if the command is empty, then if it cannot be run, fails, or prints no number last.
    """
    words = shlex.split(command)
    if not words:
        raise InputError("--eval is empty: give the command that measures a directory")

    def measure(directory: Path) -> float:
        arguments = [word.replace("{dir}", str(directory)) for word in words]
        environment = os.environ | {"COMPEFT_DIRECTORY": str(directory)}
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)  # noqa: S603  # the user's own
        except OSError as error:
            raise InputError(f"cannot run {arguments[0]}: {error.strerror}") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise InputError(f"--eval ended with code {done.returncode}: {last[:200]}")
        try:
            return float((done.stdout.strip().splitlines() or [""])[-1])
        except ValueError:
            raise InputError(f"--eval must print the metric as its last line, it printed {done.stdout[-60:]!a}") from None

    return measure


@dataclass(frozen=True, slots=True)
class Journal:
    """Metrics in a JSON file. `question`: what they depend on beside the key, such as the command and the weights it was given."""

    file: Path
    question: Sequence[object]

    def remembered(self, key: Sequence[object], measure: Callable[[], float]) -> float:
        """The metric in the file, or a new one that is in it when this returns.

        Errors: FormatError if the file is not a journal; NotFiniteError; those of measuring.
        """
        name = hashlib.sha256(json.dumps([*self.question, *key]).encode()).hexdigest()
        try:
            known: dict[str, float] = json.loads(self.file.read_text()) if self.file.exists() else {}
        except ValueError as error:
            raise FormatError(f"{self.file} is not a journal of measurements: remove it to begin again") from error
        if name not in known:
            known[name] = measure()
            if not math.isfinite(known[name]):
                raise NotFiniteError(f"the measuring command answered {known[name]}")
            write_durably(self.file, json.dumps(known, indent=1).encode())
        return known[name]


def digest_of_weights(path: Path) -> str:
    """SHA-256 of the weights in a directory or of a file, in hex, so that another expert in the same place is measured again.

    Errors: InputError if they cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def write_untrained(directory: Path, target: Path) -> None:
    """A copy of an adapter's directory that computes what its base model does: LoRA's B at zero, a head as it is. `target` exists.

    Errors: InputError if it is not an adapter; those of reading.
    """
    if not read_source(directory).config:
        raise InputError(
            f"{directory} is a LoRA without adapter_config.json (kohya's or diffusers' names): expected a PEFT directory"
        )
    tensors = adapter_float32(directory)
    shutil.copytree(directory, target, dirs_exist_ok=True)
    start = {n: np.zeros_like(t) if n.endswith(ZERO_FACTORS) else t for n, t in tensors.items()}
    save_file(start, target / ADAPTER, {"format": "pt"})


def adapter_float32(directory: Path) -> Tensors:
    """The tensors of an adapter, by name. Errors: InputError if it is invalid; those of reading."""
    source = read_source(directory)
    if not source.is_adapter:
        raise InputError(f"{directory} is a full checkpoint, expected an adapter")
    return {n: np.concatenate([*read_values(t)]).reshape(t.shape) for n, t in source.files[ADAPTER].tensors.items() if t.size}
