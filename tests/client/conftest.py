"""An adapter, the directory it started from, and a key."""

from pathlib import Path

import pytest

from compeft_proto.keys import SigningKey, new_key
from tests.client import builders


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    return builders.write_adapter(tmp_path / "untrained", builders.initial())


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return builders.write_adapter(tmp_path / "adapter", builders.tuned(builders.initial()))


@pytest.fixture(scope="session")
def key() -> SigningKey:
    return new_key()
