"""Facts as a ledger is given them, each with a default for what a test does not speak of."""

import hashlib
from dataclasses import replace

from compeft_core import layout_of
from compeft_proto.keys import PublicKey, new_key
from compeft_server.domain.records import Expert, Quality, Refusal, Round, Submission, Transfer, Version
from compeft_server.ledger.ledger import Ledger

EXPERT = Expert("sentiment", b"\x01" * 32, b"\x02" * 32, layout_of({"a.lora_A": (2, 10), "a.lora_B": (10, 2)}))
OPEN = Round("sentiment", "run-1", 1, b"nonce", 0, 1000, 10)
CLOSED = replace(OPEN, closed_at_ms=20, version=1)


def digest(words: str) -> bytes:
    """A digest."""
    return hashlib.sha256(words.encode()).digest()


def version(number: int, expert: str = "sentiment") -> Version:
    """A version, with two residual chunks from the first on."""
    residual = (digest(f"r{number}"), digest(f"s{number}")) if number else ()
    return Version(expert, number, b"", digest(f"state {number}"), residual, "run-1", number, 100, 0.5, 10 + number)


def submission(key: PublicKey, words: str = "update", sequence: int = 1) -> Submission:
    """An update for the open round."""
    return Submission(digest(words), "sentiment", "run-1", 1, key.keyid, sequence, 300, b"sealed", b"receipt", 15)


def with_round(ledger: Ledger) -> tuple[PublicKey, PublicKey]:
    """An expert with a round open, and two clients."""
    keys = new_key().public, new_key().public
    for name, key in zip("ab", keys, strict=True):
        ledger.enrol(name, key, "edge", 1)
    ledger.create(EXPERT, version(0))
    ledger.open_round(OPEN)
    return keys


TRANSFER = Transfer(5, "up", "k" * 32, "sentiment", "run-1", 1, 1, 1000, 50, 70, 7, 0.25, 60)
REFUSAL = Refusal(6, "ipv4:127.0.0.1:1", "sentiment", 1, "expired", "issued too long ago")
QUALITY = Quality(7, "sentiment", "run-1", 1, 1, "synced", "", "accuracy", 0.5, 300)
