"""The seed corpus and its neighbours: every seed is accepted, and no altered seed makes anything but a typed error."""

import random

import pytest

from tests.fuzz.run import CORPUS
from tests.fuzz.targets import TARGETS, check

SEEDS = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


def test_every_target_has_seeds() -> None:
    assert {path.parent.name for path in SEEDS} == set(TARGETS)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_altered_seeds_are_refused_or_still_canonical(seed: object) -> None:
    data = seed.read_bytes()  # type: ignore[attr-defined]  # a path
    target = seed.parent.name  # type: ignore[attr-defined]
    check(target, data)
    dice = random.Random(data)
    for _ in range(60):
        altered = bytearray(data)
        for _ in range(dice.randint(1, 3)):
            altered[dice.randrange(len(altered))] = dice.randrange(256)
        check(target, bytes(altered[: dice.choice([len(altered), dice.randrange(len(altered) + 1)])]))
