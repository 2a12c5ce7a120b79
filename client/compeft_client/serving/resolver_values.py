"""Values of the resolver: its settings, what it found, what it counts, and what it remembers across restarts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from compeft_client.durable_files import write_durably
from compeft_client.serving.engine_fit import EngineLimits
from compeft_proto.keys import PublicKey
from compeft_proto.sync_answer import Tick

GIB = 2**30


@dataclass(frozen=True, slots=True)
class ResolverSettings:
    """cache: folder for decoded experts, at most `max_bytes` of them.   fresh_s: how old an answer of the aggregator may be.
    away_s: how long an aggregator that is away is not asked again.   publisher: nobody else's packages.   init: as for `unpack`.
    require_base: refuse an expert that does not say which base model it is for.
    """

    cache: Path
    max_bytes: int = 4 * GIB
    fresh_s: float = 0.5
    away_s: float = 2.0
    publisher: PublicKey | None = None
    init: str | None = None
    require_base: bool = False
    limits: EngineLimits = field(default_factory=EngineLimits)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A verified expert. name: fixed, of one version for ever.   adapter_id: by the digest.   age_s: since the aggregator confirmed it."""

    name: str
    expert: str
    version: int
    digest: bytes
    adapter_id: int
    directory: Path
    age_s: float


@dataclass(slots=True)
class ResolverCounts:
    """Counters since the start. transferred_bytes: of payloads, without what was here already; decode_s: unpacking and fitting."""

    requests: int = 0
    hits: int = 0
    misses: int = 0
    refused: int = 0
    away: int = 0
    transferred_bytes: int = 0
    transfer_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Known:
    """What the aggregator last said a name leads to. confirmed_ms: wall clock; asked_s: monotonic, 0 after a restart."""

    version: int
    digest: bytes
    package: bool
    confirmed_ms: int
    asked_s: float = 0.0


class ByteCounter:
    """A context that gives a function which adds the bytes of a transfer to the counters."""

    def __init__(self, counts: ResolverCounts) -> None:
        self._counts = counts

    def __enter__(self) -> Tick:
        def tick(done: int) -> None:
            self._counts.transferred_bytes += done

        return tick

    def __exit__(self, *_: object) -> None:
        pass


def read_known(file: Path) -> dict[str, Known]:
    """What was verified before a restart; nothing if the file is missing or damaged: then the aggregator is needed."""
    try:
        rows = json.loads(file.read_bytes())
        return {
            str(text): Known(int(version), bytes.fromhex(digest), bool(package), int(confirmed_ms))
            for text, (version, digest, package, confirmed_ms) in rows.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def save_known(file: Path, known: Mapping[str, Known]) -> None:
    """Keep what a restart without the aggregator may serve. Errors: InputError."""
    rows = {text: [k.version, k.digest.hex(), k.package, k.confirmed_ms] for text, k in known.items()}
    write_durably(file, json.dumps(rows).encode())
