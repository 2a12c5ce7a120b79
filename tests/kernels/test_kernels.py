"""Kernels with and without numba: the same bits."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compeft_core.kernels import compiled, interpreted
from tests.core import decoded_digest


def test_without_numba_everything_decodes_to_the_same_bits() -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.core.decoded_digest", "--without-numba"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["interpreted", decoded_digest.digest()]


@pytest.mark.parametrize("word", [0, 1, 2**63, 0x8000_0001_0000, 2**64 - 1])
def test_bits_of_a_word_are_counted_alike(word: int) -> None:
    def both(word: np.uint64) -> tuple[int, int]:
        return compiled.trailing_zeros(word), compiled.ones(word)

    ours = interpreted.trailing_zeros(np.uint64(word)), interpreted.ones(np.uint64(word))
    assert ours == compiled.kernel(both)(np.uint64(word))


def test_masks_and_loads_are_alike() -> None:
    random = np.random.default_rng(5)
    bits, flags = random.integers(0, 2**32, 100, np.uint32), random.random(100) < 0.3
    octets = random.integers(0, 256, 100, np.uint8)

    def all_three(bits: object, flags: object, octets: object, index: int, least: int) -> tuple[object, object, object]:
        return compiled.magnitude_mask(bits, index, least), compiled.true_mask(flags, index), compiled.load_word(octets, index)

    run = compiled.kernel(all_three)
    for index in (0, 1, 36):
        least = np.uint32(1 << 30)
        ours = interpreted.magnitude_mask(bits, index, int(least)), interpreted.true_mask(flags, index)
        assert (*ours, interpreted.load_word(octets, index)) == run(bits, flags, octets, index, least)
