"""Which site folder a client of a Flower app is: its node's own configuration, the environment, or a partition's simulated site.

    from compeft_client import CompressionMod, own_or_simulated

    app = ClientApp(mods=[CompressionMod()])    # node configuration, else COMPEFT_SITE
    mod = CompressionMod(config=own_or_simulated(lambda context: context.run_config["sites"]))    # a folder that the run names

Flower's simulation gives each client the number of its partition and no configuration of its own, so COMPEFT_SITE may also name the folder
that `compeft clients simulate` made, with one site folder for each partition. A node that was started with a configuration of its own
keeps it: neither a run nor the environment can choose another key or aggregator for it.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from flwr.app import Context

from compeft_proto.site_layout import INDEX, SITE_VARIABLE, simulated

OWN = ("site", "key", "aggregator")
"""A node configuration with one of these is a client's own."""


def own_or_environment(context: Context) -> Mapping[str, object]:
    """The node's own configuration; without one, the site folder that COMPEFT_SITE names, or this partition's in a folder of simulated
    sites.
    """
    return own_or_simulated(lambda _: os.environ.get(SITE_VARIABLE))(context)


def own_or_simulated(sites: Callable[[Context], object]) -> Callable[[Context], Mapping[str, object]]:
    """A `config` for CompressionMod: the node's own configuration; without one, the site folder that `sites` names, or the site folder of
    the node's partition in it.
    """

    def config(context: Context) -> Mapping[str, object]:
        folder = str(sites(context) or "")
        if not folder or _is_own(context):
            return context.node_config
        return {"site": _site_in(Path(folder), context)}

    return config


def _is_own(context: Context) -> bool:
    return any(context.node_config.get(name) for name in OWN)


def _site_in(folder: Path, context: Context) -> Path:
    """`folder` if it is a site folder, else that of the node's partition in it."""
    if (folder / INDEX).exists() or "partition-id" not in context.node_config:
        return folder
    return folder / simulated(int(context.node_config["partition-id"]))
