"""Sums of transfers, the links they would take, and task metrics over clients."""

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Link:
    """A named link and its rates in bit/s, seen from the edge client."""

    name: str
    up: float
    down: float


LINKS = (
    Link("10 Mbit/s", 10e6, 10e6),
    Link("100 Mbit/s", 100e6, 100e6),
    Link("4G, 5 Mbit/s up, 20 Mbit/s down", 5e6, 20e6),
)


@dataclass(frozen=True, slots=True)
class Traffic:
    """A sum of transfers. dense: the same parameters uncompressed; received and sent are seen from the aggregator; relayed: of these, what
    others carried to and from clients inside their own messages. flow: bytes of uploads that arrived one message after another, and the
    seconds between those messages: waiting is left out, so a rate is measured from these alone.
    """

    dense_fp32_bytes: int = 0
    payload_bytes: int = 0
    wire_received_bytes: int = 0
    wire_sent_bytes: int = 0
    seconds: float = 0.0
    relayed_bytes: int = 0
    flow_bytes: int = 0
    flow_seconds: float = 0.0

    @property
    def rate(self) -> float | None:
        """Measured upload rate in bit/s; None where no upload was longer than one message."""
        return 8 * self.flow_bytes / self.flow_seconds if self.flow_bytes and self.flow_seconds > 0 else None

    @property
    def dense_bf16_bytes(self) -> int:
        """The same parameters as bfloat16."""
        return self.dense_fp32_bytes // 2

    @property
    def wire_bytes(self) -> int:
        """Both ways on the socket: a call's acknowledgements and heads are part of its price."""
        return self.wire_received_bytes + self.wire_sent_bytes


@dataclass(frozen=True, slots=True)
class Score:
    """A task metric over clients: the mean weighted by test examples, the smallest and the largest.

    reporter: who stated it without a measurement that the aggregator has seen, such as a publisher; empty where clients measured it.
    own: each client measured its own update, not one that all of them have.
    """

    mean: float
    low: float
    high: float
    clients: int
    reporter: str = ""
    own: bool = False


def why_silent(dense_bytes: int, wire_counted: bool, measured: bool) -> str:
    """Why no saving may be stated, in words; empty when one may."""
    if not dense_bytes:
        return "No transfer of an edge client was recorded yet, so no saving is stated."
    if not wire_counted:
        return "The wire was not counted on this aggregator (it needs Linux), so no saving is stated."
    return (
        ""
        if measured
        else "No quality was reported for any version of this expert, so no saving is stated: bytes alone say nothing."
    )


def why_row_silent(kind: str, version: int, up: Traffic, down: Traffic, measured: bool) -> str:
    """Why no saving may be stated of one version alone, in words; empty when one may. `kind` is that of the expert.

    Version 0 of a composed expert is where training starts: no client has sent anything that led to it.
    """
    both = add((up, down))
    if kind == "composed" and version == 0:
        return "Version 0 is the start: no update led to it, so no saving is stated."
    if kind == "package" and not down.payload_bytes:
        return "No client has fetched this version, so no saving is stated."
    counted = both.wire_bytes > 0 and both.wire_bytes >= both.payload_bytes
    return why_silent(both.dense_fp32_bytes, counted, measured)


def add(parts: Iterable[Traffic]) -> Traffic:
    """The sum."""
    parts = list(parts)
    return Traffic(*(sum(getattr(part, field.name) for part in parts) for field in fields(Traffic)))


@dataclass(frozen=True, slots=True)
class LinkTime:
    """Seconds that an average client's bytes of the whole log take on a link, without latency."""

    link: Link
    dense_fp32: float
    dense_bf16: float
    wire: float


def times_of(up: Traffic, down: Traffic, clients: int) -> list[LinkTime]:
    """One row a named link. Wire bytes take the way they went: to the aggregator at the up rate, from it at the down rate."""
    both = add((up, down))

    def seconds(link: Link, to_aggregator: float, from_aggregator: float) -> float:
        return 8 * (to_aggregator / link.up + from_aggregator / link.down) / clients

    return [
        LinkTime(
            link=link,
            dense_fp32=seconds(link, up.dense_fp32_bytes, down.dense_fp32_bytes),
            dense_bf16=seconds(link, up.dense_bf16_bytes, down.dense_bf16_bytes),
            wire=seconds(link, both.wire_received_bytes, both.wire_sent_bytes),
        )
        for link in LINKS
    ]
