"""The world of the exchange's tests, and packed experts to push into it."""

from pathlib import Path

import pytest

from compeft_client.exchange.package_client import PackageClient
from compeft_client.identity.edge_config import Edge
from compeft_client.packing.pack import PackSettings, save_compressed
from compeft_proto.keys import SigningKey
from tests.client import builders
from tests.rounds.conftest import World
from tests.rounds.conftest import world as world
from tests.rounds.test_resume import cutter as cutter

PACKAGE = "tuned"


def packed(folder: Path, seed: int, layers: int = 2, density: float = 0.05) -> Path:
    """A packed expert; another one for each seed."""
    directory = builders.write_adapter(folder / f"adapter-{seed}", builders.tuned(builders.initial(layers), seed))
    file = folder / f"expert-{seed}.expert"
    save_compressed(directory, file, PackSettings(density), force=True)
    return file


def edge_at(world: World, name: str, key: SigningKey, address: str = "", patience_s: float = 0) -> Edge:
    """Who a client is; `address` may be that of a proxy."""
    return Edge(address or world.address, key, world.aggregator.public, world.folder / f"state-{name}", patience_s=patience_s)


def publisher(world: World, address: str = "", patience_s: float = 0) -> PackageClient:
    """The conductor, who may push."""
    return PackageClient(edge_at(world, "publisher", world.conductor_key, address, patience_s))


def reader(world: World, name: str = "reader", address: str = "", patience_s: float = 0) -> PackageClient:
    """A newly enrolled edge client."""
    return PackageClient(edge_at(world, name, world.enrol(name), address, patience_s))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return packed(tmp_path, 1)
