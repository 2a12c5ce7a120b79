"""The client's SDK. Importing this package loads nothing; each name below is loaded when it is first used.

    from compeft_client import CompressionMod, EdgeClient, ExpertPool, edge_of, save_compressed

Names that need torch, PEFT or Flower say so by failing with ModuleNotFoundError where `compeft[client]` is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compeft_client.exchange.edge_client import EdgeClient, Trained
    from compeft_client.exchange.package_client import PackageClient
    from compeft_client.exchange.pool_reports import PoolUsage, report_pool, reporting
    from compeft_client.exchange.quality_floor import Floor
    from compeft_client.flower.mod import CompressionMod
    from compeft_client.flower.simulation import own_or_simulated
    from compeft_client.identity.edge_config import Edge, edge_of
    from compeft_client.merging.merge import MergeRequest, merge_experts
    from compeft_client.models.batch_pool import BatchPool
    from compeft_client.models.expert_pool import ExpertPool
    from compeft_client.packing.pack import save_compressed
    from compeft_client.packing.settings import PackSettings
    from compeft_client.packing.unpack import from_compressed, load_compressed
    from compeft_client.search.blend import blend

__all__ = [
    "BatchPool",
    "CompressionMod",
    "Edge",
    "EdgeClient",
    "ExpertPool",
    "Floor",
    "MergeRequest",
    "PackSettings",
    "PackageClient",
    "PoolUsage",
    "Trained",
    "blend",
    "edge_of",
    "from_compressed",
    "load_compressed",
    "merge_experts",
    "own_or_simulated",
    "report_pool",
    "reporting",
    "save_compressed",
]
MODULES = {
    "BatchPool": "models.batch_pool",
    "CompressionMod": "flower.mod",
    "Edge": "identity.edge_config",
    "EdgeClient": "exchange.edge_client",
    "ExpertPool": "models.expert_pool",
    "Floor": "exchange.quality_floor",
    "MergeRequest": "merging.merge",
    "PackSettings": "packing.settings",
    "PackageClient": "exchange.package_client",
    "PoolUsage": "exchange.pool_reports",
    "Trained": "exchange.edge_client",
    "blend": "search.blend",
    "edge_of": "identity.edge_config",
    "from_compressed": "packing.unpack",
    "load_compressed": "packing.unpack",
    "merge_experts": "merging.merge",
    "own_or_simulated": "flower.simulation",
    "report_pool": "exchange.pool_reports",
    "reporting": "exchange.pool_reports",
    "save_compressed": "packing.pack",
}
"""Name -> the module that defines it, below this package."""


def __getattr__(name: str) -> object:
    """Load a name of the SDK (PEP 562). Errors: AttributeError."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
