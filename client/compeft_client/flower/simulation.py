"""Who a simulated client is: Flower's simulation gives each client a partition's number and no configuration of its own.

    from compeft_client import CompressionMod, own_or_simulated

    app = ClientApp(mods=[CompressionMod(config=own_or_simulated(lambda context: context.run_config["sites"]))])

The folder holds a site folder for each partition, as `compeft clients simulate` makes them. A node that was started with a
configuration of its own keeps it: what a run says cannot choose another key or aggregator for it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from flwr.app import Context

from compeft_proto.site_layout import simulated

OWN = ("site", "key", "aggregator")
"""A node configuration with one of these is a client's own."""


def own_or_simulated(sites: Callable[[Context], object]) -> Callable[[Context], Mapping[str, object]]:
    """A `config` for CompressionMod: the node's own configuration; without one, the site folder of its partition in the folder that
    `sites` names, if it names one.
    """

    def config(context: Context) -> Mapping[str, object]:
        folder = str(sites(context) or "")
        if not folder or any(context.node_config.get(name) for name in OWN):
            return context.node_config
        return {"site": Path(folder) / simulated(int(context.node_config["partition-id"]))}

    return config
