"""The store: content-addressed bytes. What every store promises; the stores themselves are `store_*.py`.

A chunk is at most 1 MiB and named by its SHA-256. What a sender has sent of one is a *part* until it is committed. A store knows
nothing of experts, rounds or why a chunk is kept: `garbage.py` asks the ledger for that.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from compeft_proto.errors import ChunkMismatchError, UnknownExpertError

PART_BYTES = 256 * 2**10
"""Bytes handed out at a time when a chunk is streamed."""


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk in a store. `claimed_at_ms`: when somebody last put it, committed it or found it with `has`, or up to CLAIM_SLACK_MS
    before that.
    """

    sha256: bytes
    size: int
    claimed_at_ms: int


CLAIM_SLACK_MS = 60 * 60 * 1000
"""A store need not note a claim sooner than this after the one before."""


class ChunkStore(Protocol):
    """Chunks, and parts of chunks.

    - **Durable on return.** When `put` or `commit` returns, the chunk survives a crash of the machine.
    - **Checked on read.** Bytes that are handed out have the SHA-256 that was asked for.
    - **Nothing before commit.** A part is seen by `received` and `peek` of its sender only, and survives a restart.
    - **Idempotent.** Doing something twice is the same as once; one chunk is kept once, whoever sent it.
    - **A claim keeps a chunk.** After `put`, `commit` or a `has` that said yes, `remove` leaves the chunk alone for the grace period
      of its caller, so whoever was told that a chunk is here may name it in the ledger.
    """

    @property
    def partial(self) -> Path | None:
        """The folder of this machine where parts wait, in files `<sender>-<digest>`; None if they are in memory."""

    def has(self, sha256: bytes) -> bool:
        """Whether the chunk is here, whole; if so this claims it."""

    def put(self, data: bytes) -> bytes:
        """Keep `data`; returns its SHA-256."""

    def read(self, sha256: bytes) -> bytes:
        """A whole chunk. Errors: UnknownExpertError if it is not here, ChunkMismatchError if it was altered in the store."""

    def stream(self, sha256: bytes, offset: int) -> Iterator[bytes]:
        """A chunk from `offset` on, PART_BYTES at a time. Errors: as `read`, before the first byte."""

    def received(self, sender: str, sha256: bytes) -> int:
        """Bytes of the chunk that `sender` has sent so far."""

    def append(self, sender: str, sha256: bytes, data: bytes) -> None:
        """Keep the next bytes of a chunk that `sender` is sending."""

    def check(self, sender: str, sha256: bytes) -> None:
        """Compare what `sender` has sent with its digest. Errors: ChunkMismatchError, and then it is dropped."""

    def peek(self, sender: str, sha256: bytes) -> bytes:
        """A chunk that is here, or that `sender` has sent but nobody has committed. Errors: as `read`."""

    def commit(self, sender: str, sha256: bytes) -> None:
        """Make a checked part of `sender` a chunk; a claim if it is one already. Errors: UnknownExpertError if it is neither."""

    def drop(self, sender: str, sha256: bytes) -> None:
        """Delete what `sender` has sent of a chunk."""

    def chunks(self) -> Iterator[StoredChunk]:
        """Every chunk, in no order. One that comes or goes meanwhile may be listed or not."""

    def remove(self, sha256: bytes, claimed_before_ms: int) -> bool:
        """Remove a chunk, if its newest claim is from before this time. False if it was claimed since, or is gone."""

    def remove_parts(self, touched_before_ms: int, dry_run: bool = False) -> int:
        """Remove what senders left unfinished and have added nothing to since this time; how many parts that are."""


def checked(sha256: bytes, data: bytes) -> bytes:
    """`data`, if its SHA-256 is the expected one. Errors: ChunkMismatchError."""
    if hashlib.sha256(data).digest() != sha256:
        raise ChunkMismatchError(f"chunk {sha256.hex()[:16]} has changed in the aggregator's store: restore it from a backup")
    return data


def in_parts(data: bytes, offset: int) -> Iterator[bytes]:
    """`data` from `offset` on, PART_BYTES at a time."""
    for start in range(offset, len(data), PART_BYTES):
        yield data[start : start + PART_BYTES]


def missing(sha256: bytes) -> NoReturn:
    """Errors: UnknownExpertError."""
    raise UnknownExpertError(f"no chunk {sha256.hex()[:16]} in the store")
