"""The names by which a request to an engine asks for an expert.

sentiment                    the newest version
sentiment@stable             where a channel points
sentiment@7                  a version
sentiment@7-1a2b3c4d         the same, if its digest begins so: what every other name leads to, and never means anything else
sentiment@sha256:1a2b3c4d... by its digest alone, 16 to 64 hexadecimal digits
"""

import re
from dataclasses import dataclass

from compeft_client.delivery.pull import Reference, reference_of
from compeft_core.errors import InputError

SHORT = 8
"""Hexadecimal digits of a digest in a fixed name."""
FIXED = re.compile(r"([0-9]{1,9})-([0-9a-f]{8})")
DIGEST = re.compile(r"sha256:([0-9a-f]{16,64})")


@dataclass(frozen=True, slots=True)
class ModelName:
    """An expert, and at most one of version and channel; `digest`: hexadecimal digits that its digest begins with, or empty."""

    expert: str
    version: int | None = None
    channel: str = ""
    digest: str = ""

    @property
    def reference(self) -> Reference:
        """What to ask the aggregator for."""
        return Reference(self.expert, self.version, self.channel)

    @property
    def is_fixed(self) -> bool:
        """Whether the name can only ever mean one version."""
        return self.version is not None or bool(self.digest)


def model_name_of(text: str) -> ModelName:
    """The name that a request gave. Errors: InputError."""
    found = reference_of(text)
    expert, place = found.expert, found.channel
    if fixed := FIXED.fullmatch(place):
        return ModelName(expert, int(fixed[1]), digest=fixed[2])
    if digest := DIGEST.fullmatch(place):
        return ModelName(expert, digest=digest[1])
    if ":" in place:
        raise InputError(f"invalid digest in {text[:100]!a}: expected {expert}@sha256: and 16 to 64 hexadecimal digits")
    return ModelName(expert, found.version, place)


def fixed_name(expert: str, version: int, digest: bytes) -> str:
    """The name that only ever means this version, such as `sentiment@7-1a2b3c4d`."""
    return f"{expert}@{version}-{digest.hex()[:SHORT]}"


def adapter_id_of(digest: bytes) -> int:
    """A number for engines that count adapters: of the digest, the same on every machine, 1 to 2^62 - 1."""
    return (int.from_bytes(digest[:8], "big") >> 2) or 1
