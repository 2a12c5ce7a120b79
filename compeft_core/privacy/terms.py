"""ClientPrivacy: what a private round promises each client, and how its clip follows a quantile of the clients' norms.

    Plan.for_model(model, "triage", privacy=ClientPrivacy(clip=0.5, noise_multiplier=1.2, delta=1e-5, epsilon=8.0))

The unit of privacy is the client: everything it contributes to a round. Central noise hides whether its contribution is there or zero;
local noise hides which of any two contributions it is.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from compeft_core.errors import InputError

Where = Literal["central", "local"]
CLIP_RATE = 0.2
"""How fast an adaptive clip moves: by at most this factor's exponential in a round (Andrew et al., arXiv 1905.03871)."""
BITS_PER_CLIENT = 20
"""The noise on the count of clients within the clip is a 20th of their number, as in Andrew et al."""


@dataclass(frozen=True, slots=True)
class ClientPrivacy:
    """The terms of a private round.

    clip: largest L2 norm of a client's contribution (finite, > 0).   noise_multiplier: standard deviation of the noise in clips (> 0).
    delta: of (epsilon, delta), above 0 and below 1.   where: `central`, the aggregator adds the noise to the sum; `local`, each client
    to its own update before it compresses it.
    target_quantile: the clip follows this quantile of the clients' norms, above 0 and below 1, and `clip` is the first; None: it is fixed.
    epsilon: the bound at which a run stops; None: the account is kept, nothing stops.
    residual: clients carry what compression left behind to their next round; it is clipped together with the next task vector.
    data: name of the data that is trained on. What a client spends adds up over all experts of an aggregator with this name.

    Errors: InputError for a value out of range, or a target_quantile with local noise.
    """

    clip: float
    noise_multiplier: float
    delta: float
    where: Where = "central"
    target_quantile: float | None = None
    epsilon: float | None = None
    residual: bool = False
    data: str = ""

    def __post_init__(self) -> None:
        for name in ("clip", "noise_multiplier", "epsilon"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"invalid {name} {value} of ClientPrivacy: expected a finite number above 0, such as 1.0")
        for name in ("delta", "target_quantile"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise InputError(f"invalid {name} {value} of ClientPrivacy: expected a number above 0 and below 1")
        if self.where not in get_args(Where):
            raise InputError(f"invalid where {self.where!r} of ClientPrivacy: expected {' or '.join(get_args(Where))}")
        if self.target_quantile is not None and self.where == "local":
            raise InputError(
                "target_quantile needs where='central': a client's own count of clipped updates would travel without noise"
            )

    @property
    def sensitivity(self) -> float:
        """How far a client can move what is published, in clips: 1 if its contribution may be zero, 2 if it may be any other."""
        return 1.0 if self.where == "central" else 2.0


def bit_noise(terms: ClientPrivacy, clients: int) -> float:
    """Standard deviation of the noise on the number of clients within the clip; 0 if the clip is fixed.

    It is at least `noise_multiplier`, so that the count takes at most a quarter of what a round spends.
    """
    return 0.0 if terms.target_quantile is None else max(clients / BITS_PER_CLIENT, terms.noise_multiplier)


def value_noise(terms: ClientPrivacy, clients: int) -> float:
    """Noise multiplier of the sum of values: then values and count together are one Gaussian mechanism of `noise_multiplier`.

    A client moves the count's mean by half, so 1 / z^2 = 1 / values^2 + 1 / (2 bit_noise)^2 (Andrew et al., theorem 1).
    """
    bits = bit_noise(terms, clients)
    return terms.noise_multiplier if not bits else (terms.noise_multiplier**-2 - (2 * bits) ** -2) ** -0.5


def next_clip(terms: ClientPrivacy, clip: float, noised_within: float, clients: int) -> float:
    """The clip of the next round: clip * exp(-0.2 (share of clients within it - target_quantile)), the share cut to 0 to 1."""
    if terms.target_quantile is None:
        return clip
    share = min(1.0, max(0.0, noised_within / clients))
    return clip * math.exp(-CLIP_RATE * (share - terms.target_quantile))
