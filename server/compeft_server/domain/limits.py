"""Limits: caps on messages, clients and calls."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on what one message may ask for, on what each client and all together may take, and on how long a call may stand still.

    `max_magnitude` is of a value in an update, `max_examples` of its weight.
    A rate of 0 means no limit. `burst` is what a client may take at once after a while without any. Rates of "all" bind only clients
    that have used up half of their own. `partial` bytes are of uploads not yet whole.
    """

    max_payload_bytes: int = 2**30
    max_parameters: int = 10**9
    max_examples: int = 10**12
    max_magnitude: float = 2.0**20
    max_clock_skew_ms: int = 5 * 60 * 1000
    max_age_ms: int = 60 * 60 * 1000
    max_calls_per_client: int = 4
    max_calls: int = 256
    stall_s: float = 120.0
    calls_per_s_per_client: float = 20.0
    calls_burst_per_client: float = 200.0
    calls_per_s_all: float = 0.0
    bytes_per_s_per_client: float = 0.0
    bytes_burst_per_client: float = 2.0**30
    bytes_per_s_all: float = 0.0
    bytes_per_day_per_client: float = 0.0
    max_partial_bytes_per_client: int = 4 * 2**30
    min_free_bytes: int = 256 * 2**20
