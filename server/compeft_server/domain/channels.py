"""Channels of an expert: named places in its log that readers follow. Pure functions over the operator's moves; no I/O.

`canary` is the newest version, always: whatever is published appears there, and rounds build on it. `stable` is where the operator
last put it. A move is a row that stays: where a channel pointed before is known for ever.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from compeft_core.errors import InputError
from compeft_proto.errors import UnknownExpertError

ChannelName = Literal["stable", "canary"]
CHANNELS: tuple[ChannelName, ...] = ("stable", "canary")


@dataclass(frozen=True, slots=True)
class Move:
    """The operator made a channel of an expert point at a version."""

    at_ms: int
    expert: str
    channel: ChannelName
    version: int


@dataclass(frozen=True, slots=True)
class Channel:
    """Where a channel points. `moved_back_from`: its newest move led back, from that version."""

    name: ChannelName
    version: int
    moved_back_from: int | None = None


def channel_name(name: str) -> ChannelName:
    """`name`, if it is a channel's. Errors: InputError."""
    found = next((c for c in CHANNELS if c == name), None)
    if found is None:
        raise InputError(f"channel {name[:20]!a}, there are {' and '.join(CHANNELS)}")
    return found


def channel_of(name: str, expert: str, moves: Iterable[Move], head: int) -> Channel:
    """Where a channel points; `moves` are those of the expert, oldest first, `head` is its newest version.

    Errors: InputError for another name; UnknownExpertError if the channel never pointed anywhere.
    """
    known = channel_name(name)
    if known == "canary":
        return Channel(known, head)
    places = [move.version for move in moves if move.channel == known]
    if not places:
        raise UnknownExpertError(f"{expert} has no {known} version yet: its operator makes one with `compeft experts promote`")
    back = len(places) > 1 and places[-1] < places[-2]
    return Channel(known, places[-1], places[-2] if back else None)


def channels_through(version: int, moves: Iterable[Move]) -> frozenset[ChannelName]:
    """The channels that point at a version, or did."""
    return frozenset(("canary", *(move.channel for move in moves if move.version == version)))
