"""Plan: what a run does with one expert. `Plan.for_model` derives it from the app's model.

strategy = CompressedStrategy(FedAvg(), Plan.for_model(Net(), "digits", seed=0))
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from compeft_core import Compression, MergeParameters
from compeft_core.errors import InputError
from compeft_core.frozen_tensors import resting_in_round
from compeft_core.merging.inputs import USUAL
from compeft_core.privacy.terms import ClientPrivacy
from compeft_core.server_optimizer import ServerOptimizer
from compeft_proto.merge_settings import DOWNLINK, PLAIN_METHOD
from compeft_proto.round_task import CodecChoice, Origin
from compeft_server.flower.model_reader import read_model

NO_ORIGIN = Origin()
UPLINK = Compression(0.05)
"""A twentieth of each update travels up."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does with one expert.

    uplink, downlink: how clients and aggregator compress; where both densities are 1, every array travels whole, as bfloat16.
    merge_method, coefficient, merge_parameters: see `compeft_core.merging.methods`.
    origin: what the expert is trained with; clients whose mod does not say are taken to train with the same.
    dense: names of arrays kept as bfloat16 instead of ternary, beside those that always are: scalars, vectors of up to 16,384 entries,
    and statistics such as BatchNorm's running mean and variance (`compeft_core.statistics`).
    dense_if_sent: more of them, of which the app need not send every one.
    seed: the initial arrays come from `compeft_core.seeded_state` with this seed and `bounds` (one per array name; 0 or absent means
    zeros), so that no initial byte travels; None ships them once, as a snapshot compressed without loss. draw: `start` begins with the
    arrays of the seed, whatever initial arrays it is given.
    metric: name of the task metric in the clients' MetricRecord; `base-` before it marks the same for the frozen base model.

    averaging: which LoRA factors rest when, a key of `compeft_core.frozen_tensors.AVERAGING`. optimizer: what the aggregator makes of a
    merged task vector; None takes what the wrapped strategy asks for. min_updates: a round closes as soon as that many clients have
    answered, and `deadline_s` seconds after it opened at the latest; None waits for all of them, and as long as `start`'s timeout.
    max_staleness: an update that comes late joins a later round of the run, if its base is at most that many versions older.

    centred_heads: names of classification heads under a softmax, shape (classes, ...), whose task vector travels less its median row over
    classes, which no softmax sees (`compeft_core.centred_heads`): where clients hold few of many classes.

    fetch: each new version is fetched from the aggregator too, so that `start` returns arrays and can evaluate them; without it they
    lie at the aggregator only.
    relay: clients need not reach the aggregator: what they ask, get and send travels inside Flower's messages, signed and encrypted end to
    end, and this program hands it to the aggregator.
    budget_bytes: most payload bytes of a round, all clients together, half of them up and half down; `uplink` and `downlink` are then the
    highest densities that it may use, and each update takes what fits its share.
    codec: of both links: `context` takes the fewest bytes, `rice4` the least time where a link is faster than some 10 Mbit/s. `auto` lets
    each client take the one that is there sooner at the rate of its upload before; versions are then `context`.
    measure_uncompressed_every: in each such round, clients keep their own update as it was before compression, and measure it too when they
    are next asked to evaluate: what compression costs, without a second run. 0: never.
    stop_below: the run stops when `metric` is below this part of its best value twice in a row; None never stops it for that. It also stops
    when clients report a NaN loss, and when no update was accepted in a round (`run_health`).
    privacy: client-level differential privacy (docs/privacy.md); the run stops when the account reaches its bound.
    """

    expert: str
    origin: Origin = NO_ORIGIN
    uplink: Compression = UPLINK
    downlink: Compression = DOWNLINK
    merge_method: str = PLAIN_METHOD
    coefficient: float = 1.0
    merge_parameters: MergeParameters = USUAL
    dense: Collection[str] = ()
    seed: int | None = None
    bounds: dict[str, float] | None = None
    metric: str = "accuracy"
    averaging: str = "factors"
    optimizer: ServerOptimizer | None = None
    min_updates: int | None = None
    deadline_s: float | None = None
    max_staleness: int = 0
    fetch: bool = True
    relay: bool = False
    budget_bytes: int | None = None
    codec: CodecChoice = "context"
    stop_below: float | None = 0.5
    dense_if_sent: Collection[str] = ()
    draw: bool = False
    measure_uncompressed_every: int = 0
    centred_heads: Collection[str] = ()
    privacy: ClientPrivacy | None = None

    def __post_init__(self) -> None:
        resting_in_round(self.averaging, 1)
        if self.stop_below is not None and not 0 < self.stop_below < 1:
            raise InputError(f"invalid stop_below {self.stop_below}: expected a part of the best metric, such as 0.5, or None")
        if self.max_staleness and self.averaging == "alternating":
            raise InputError("alternating rounds take no late updates: one would bring the half that rests")
        if self.measure_uncompressed_every < 0:
            raise InputError(
                f"invalid measure_uncompressed_every {self.measure_uncompressed_every}: expected 0 (never) or more, such as 5"
            )
        if (self.min_updates is not None and self.min_updates < 1) or self.max_staleness < 0:
            raise InputError(f"min_updates {self.min_updates} must be 1 or more, max_staleness {self.max_staleness} 0 or more")

        if self.privacy is not None and self.privacy.where == "central" and self.merge_method != PLAIN_METHOD:
            raise InputError(
                f"merge method {self.merge_method} has no known sensitivity: "
                f"expected {PLAIN_METHOD!r} with ClientPrivacy(where='central')"
            )

    @classmethod
    def for_model(cls, model: object, expert: str, *, seed: int | None = None, **settings: Any) -> "Plan":
        """The plan of a model: what of it travels dense, what it is trained with and, with a `seed`, how its initial arrays are drawn.

        model: a torch module, a PEFT model, an ArrayRecord or a mapping of names to arrays. Buffers, heads and matrices of fewer than 1,024
        entries that are not LoRA factors travel dense. Of a PEFT model, `origin` is its adapter configuration and the weights digest of its
        base model; `origin=compeft_client.flower.peft.origin_of(model, tokenizer)` binds the tokenizer too, and takes the weights digest of
        files rather than of tensors in memory. seed: the run begins with a draw from this seed within the bounds that PyTorch and PEFT draw
        from, and no initial byte travels; the model must be freshly initialised. Without it the run begins with the app's own arrays.
        settings: as `Plan`.

        Errors: InputError for a model with neither arrays nor `state_dict`, and, with a seed, for an array that is not a fresh draw.
        """
        found = read_model(model)
        fields: dict[str, Any] = {"origin": found.origin, "dense_if_sent": found.dense}
        if seed is not None:
            fields |= {"seed": seed, "bounds": found.bounds(), "draw": True}
        return cls(expert, **(fields | settings))
