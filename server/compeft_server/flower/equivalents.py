"""What a Flower strategy would do with its clients' arrays, said in the aggregator's words: a merge method and a server optimizer.

The aggregator merges compressed updates, so a wrapped strategy's own `aggregate_train` never runs. One whose aggregation the aggregator
has as well is followed, with the numbers that the strategy object holds; any other is refused by name, never approximated.
A subclass of FedAvg whose `aggregate_train` only watches the average, such as FlowerTune's that counts bytes, is followed as FedAvg.
"""

from collections.abc import Callable
from dataclasses import replace

from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedMedian, FedTrimmedAvg, FedYogi, MultiKrum
from flwr.serverapp.strategy.fedopt import FedOpt

from compeft_core import MergeParameters, check_parameters
from compeft_core.errors import InputError
from compeft_core.merging.inputs import USUAL
from compeft_core.server_optimizer import ServerOptimizer
from compeft_proto.merge_settings import PLAIN_METHOD, MergeSettings
from compeft_server.flower.watching import only_watches


def _fedavg(_: FedAvg) -> MergeSettings:
    return MergeSettings()


def _fedavgm(inner: FedAvg) -> MergeSettings:
    if not isinstance(inner, FedAvgM) or not inner.server_opt:
        return _fedavg(inner)
    return MergeSettings(optimizer=ServerOptimizer("fedavgm", inner.server_learning_rate, inner.server_momentum))


def _fedopt(name: str) -> Callable[[FedAvg], MergeSettings]:
    """Flower's FedAdam besides scales its rate by Adam's bias correction, which the paper's algorithm has not: we follow the paper."""

    def merging(inner: FedAvg) -> MergeSettings:
        if not isinstance(inner, FedOpt):
            return _fedavg(inner)
        return MergeSettings(optimizer=ServerOptimizer(name, inner.eta, inner.beta_1, inner.beta_2, inner.tau))

    return merging


def _krum(inner: FedAvg) -> MergeSettings:
    """Flower's Krum is its MultiKrum that selects one."""
    if not isinstance(inner, MultiKrum):
        return _fedavg(inner)
    byzantine, keep = inner.num_malicious_nodes, inner.num_nodes_to_select
    if keep == 1:
        return MergeSettings("krum", parameters=MergeParameters(byzantine=byzantine))
    return MergeSettings("multi_krum", parameters=MergeParameters(byzantine=byzantine, keep=keep))


def _trimmed(inner: FedAvg) -> MergeSettings:
    return (
        MergeSettings("trimmed_mean", parameters=MergeParameters(trim=inner.beta))
        if isinstance(inner, FedTrimmedAvg)
        else _fedavg(inner)
    )


EQUIVALENTS: dict[type, Callable[[FedAvg], MergeSettings]] = {
    FedAvg: _fedavg,
    FedAvgM: _fedavgm,
    FedAdam: _fedopt("fedadam"),
    FedYogi: _fedopt("fedyogi"),
    FedAdagrad: _fedopt("fedadagrad"),
    MultiKrum: _krum,
    FedTrimmedAvg: _trimmed,
    FedMedian: lambda _: MergeSettings("median"),
}
"""By the class whose `aggregate_train` a strategy runs: FedProx, and any subclass that leaves it alone, is a FedAvg here."""


def merging_of(inner: FedAvg, method: str, parameters: MergeParameters, optimizer: ServerOptimizer | None) -> MergeSettings:
    """How the aggregator merges: by `method`, its parameters and `optimizer` where a plan says so, else as `inner` does; the rest as usual.

    Errors: InputError for a strategy whose aggregation the aggregator does not have, for one that asks for another method than the
    plan, and for parameters that a method does not take.
    """
    owner = followed_class(inner)
    if owner not in EQUIVALENTS:
        known = ", ".join(kind.__name__ for kind in EQUIVALENTS)
        raise InputError(f"{owner.__name__} aggregates by itself, and the aggregator has no equivalent; supported are: {known}")
    followed = EQUIVALENTS[owner](inner)
    if followed.method == PLAIN_METHOD:
        followed = replace(followed, method=method, parameters=parameters)
    elif (method, parameters) != (PLAIN_METHOD, USUAL):
        raise InputError(f"{owner.__name__} merges by {followed.method}, the plan by {method}: leave one of them at its default")
    check_parameters(followed.method, followed.parameters)
    return replace(followed, optimizer=optimizer or followed.optimizer)


def followed_class(inner: FedAvg) -> type:
    """The class whose aggregation a strategy has: that of its `aggregate_train` or, where that only watches FedAvg's, FedAvg."""
    owner = next(kind for kind in type(inner).__mro__ if "aggregate_train" in vars(kind))
    parent = next(kind for kind in type(inner).__mro__ if kind in EQUIVALENTS)
    return FedAvg if owner not in EQUIVALENTS and parent is FedAvg and only_watches(inner) else owner
