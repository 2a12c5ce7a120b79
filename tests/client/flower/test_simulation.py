"""Who a simulated client is, and that no run chooses it for a node with a configuration of its own."""

from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from compeft_client.flower.mod import CompressionMod
from compeft_client.flower.simulation import own_or_simulated

CONFIG = own_or_simulated(lambda context: context.run_config["sites"])


def context(node: dict[str, object], sites: str) -> Context:
    return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={"sites": sites, "site": "/else"})


def test_a_simulated_client_is_the_site_of_its_partition() -> None:
    assert CONFIG(context({"partition-id": 3, "num-partitions": 4}, "/sites")) == {"site": Path("/sites/simulated-3")}


@pytest.mark.parametrize("own", [{"site": "/mine"}, {"key": "/mine.key"}, {"aggregator": "mine:9443"}])
def test_a_node_keeps_its_own_configuration_whatever_the_run_says(own: dict[str, object]) -> None:
    node = own | {"partition-id": 3}
    assert CONFIG(context(node, "/sites")) == node


def test_without_a_folder_nothing_is_made_up() -> None:
    node: dict[str, object] = {"partition-id": 3}
    assert CONFIG(context(node, "")) == node


def test_by_default_only_the_node_says_who_a_client_is() -> None:
    node: dict[str, object] = {"partition-id": 3}
    assert CompressionMod()._config(context(node, "/sites")) == node
