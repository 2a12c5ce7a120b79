"""Epsilon of a schedule of noisy releases, by Google's dp-accounting (extra `privacy`). No ledger in here.

Releases that everybody takes part in, or of which it is known who did, are Gaussian mechanisms; any number of them, chosen one after
the other, is one Gaussian mechanism with 1 / z^2 the sum of their 1 / z^2, whose epsilon is exact (Balle and Wang, arXiv 1805.06530).
With a secret sample it is the smaller of the bounds by Renyi divergences and by privacy loss distributions.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType

from compeft_core.errors import InputError

MOST_ROUNDS = 100_000
"""`rounds_left` counts no further."""


@dataclass(frozen=True, slots=True)
class NoisyRelease:
    """`times` sums of clipped contributions with Gaussian noise.

    noise_multiplier: standard deviation of the noise divided by how far one client can move the sum; > 0.
    sampling: probability with which each client was drawn, independently and in secret; 1: all, or it is known who. 0 < sampling <= 1.
    """

    noise_multiplier: float
    sampling: float = 1.0
    times: int = 1

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and 0 < self.sampling <= 1 and self.times >= 1):
            raise InputError(
                f"invalid release {self}: expected a noise multiplier above 0, a sampling above 0 and at most 1, and 1 or more times"
            )


def epsilon_of(releases: Sequence[NoisyRelease], delta: float) -> float:
    """Epsilon at `delta` (above 0, below 1) of all releases together; 0 of none. Errors: InputError without dp-accounting."""
    if not releases:
        return 0.0
    library = _dp_accounting()
    if all(release.sampling == 1 for release in releases):
        return float(library.get_epsilon_gaussian(joint_multiplier(releases), delta))
    event = library.ComposedDpEvent([_event(library, release) for release in releases])
    from dp_accounting import pld, rdp

    bounds = []
    for accountant in (rdp.RdpAccountant(), pld.PLDAccountant()):
        accountant.compose(event)
        bounds.append(float(accountant.get_epsilon(delta)))
    return min(bounds)


def joint_multiplier(releases: Iterable[NoisyRelease]) -> float:
    """The noise multiplier of the one Gaussian mechanism that unsampled releases together are; infinite of none."""
    total = math.fsum(release.times * release.noise_multiplier**-2 for release in releases)
    return total**-0.5 if total else math.inf


def rounds_left(spent: Sequence[NoisyRelease], following: NoisyRelease, delta: float, bound: float) -> int:
    """How many more releases like `following` keep epsilon at most `bound`, at most MOST_ROUNDS; 0 if none does."""
    fits = 0
    step = 1 << (MOST_ROUNDS.bit_length() - 1)
    while step:
        tried = fits + step
        more = NoisyRelease(following.noise_multiplier, following.sampling, tried)
        if tried <= MOST_ROUNDS and epsilon_of([*spent, more], delta) <= bound:
            fits = tried
        step //= 2
    return fits


def _event(library: ModuleType, release: NoisyRelease) -> object:
    event = library.GaussianDpEvent(release.noise_multiplier)
    if release.sampling < 1:
        event = library.PoissonSampledDpEvent(release.sampling, event)
    return library.SelfComposedDpEvent(event, release.times)


def _dp_accounting() -> ModuleType:
    """The library takes seconds to import, so it is imported where an account is kept."""
    try:
        import dp_accounting
    except ModuleNotFoundError as error:
        raise InputError("the account of private rounds needs dp-accounting: pip install 'compeft[privacy]'") from error
    return dp_accounting  # type: ignore[no-any-return]  # dp_accounting ships no types
