"""What the aggregator knows, as frozen values: the words that admission, the ledger, the report and the service share."""

from dataclasses import dataclass
from typing import Literal

from compeft_core import Layout
from compeft_proto.keys import PublicKey

Role = Literal["edge", "conductor", "reader"]
ROLES: tuple[Role, ...] = ("edge", "conductor", "reader")
"""edge: submits updates and syncs; conductor: publishes experts, opens and closes rounds, syncs; reader: syncs only."""

Kind = Literal["composed", "package"]
"""What an expert's versions are: steps of a state, composed in rounds; or packed files, pushed by a publisher."""
Direction = Literal["up", "down"]
Arm = Literal["base", "synced", "dense", "own"]
ARMS: tuple[Arm, ...] = ("base", "synced", "dense", "own")
"""base: the frozen base model, zero bytes; synced: the composed expert; dense: the uncompressed peer; own: each client's own update of the
version's round, uncompressed."""


@dataclass(frozen=True, slots=True)
class Member:
    """An enrolled key."""

    name: str
    public: PublicKey
    role: Role
    revoked: bool


@dataclass(frozen=True, slots=True)
class Invited:
    """An invitation as the aggregator keeps it. number: 16 hexadecimal digits; used_by: the keyid that it let in, empty if none yet."""

    number: str
    secret_digest: bytes
    name: str
    role: Role
    expires_at_ms: int
    withdrawn: bool = False
    used_by: str = ""


@dataclass(frozen=True, slots=True)
class Certified:
    """A member's certificate: its serial number in hexadecimal, and its end."""

    serial: str
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class Enrolled:
    """One key of a member and its times. replaced_by: the keyid that took its place, empty if none did."""

    name: str
    role: str
    keyid: str
    enrolled_at_ms: int
    revoked_at_ms: int | None
    replaced_by: str
    certificate_expires_at_ms: int | None


@dataclass(frozen=True, slots=True)
class Expert:
    """What stays the same over all versions of an expert; of a package, `layout` and digests are those of its first version."""

    name: str
    base_model_digest: bytes
    adapter_config_digest: bytes
    layout: Layout
    kind: Kind = "composed"


@dataclass(frozen=True, slots=True)
class Version:
    """One place in an expert log. `residual` and `moments` list the SHA-256 of the chunks of the downlink residual and of the
    server optimizer's moments after it.
    """

    expert: str
    version: int
    envelope: bytes
    state_digest: bytes
    residual: tuple[bytes, ...]
    run: str
    round: int
    payload_bytes: int
    merge_seconds: float
    created_at_ms: int
    moments: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state at a version, made because somebody had far to go. `envelope` is its sealed manifest."""

    expert: str
    version: int
    envelope: bytes
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class Round:
    """One collect-merge-publish cycle. `version` is what closing it led to, None while it is open. An update of an earlier round may
    join if its base is at most `max_staleness` versions older.
    """

    expert: str
    run: str
    round: int
    nonce: bytes
    base_version: int
    deadline_ms: int
    opened_at_ms: int
    closed_at_ms: int | None = None
    version: int | None = None
    max_staleness: int = 0


@dataclass(frozen=True, slots=True)
class Submission:
    """One accepted update. `merged_in` is the version it went into, None while its round is open; `round` is the one it was
    accepted for, which for a late update is not the one it names itself. `weight` is the one that its client claims, 0 or more.
    """

    update_digest: bytes
    expert: str
    run: str
    round: int
    keyid: str
    sequence: int
    weight: float
    envelope: bytes
    receipt: bytes
    accepted_at_ms: int
    merged_in: int | None = None


@dataclass(frozen=True, slots=True)
class Contribution:
    """One update that went into a version, its weight there, and how many versions older its base was (0 if it was in time).
    `left_out`: the merge method chose others.
    """

    update_digest: bytes
    keyid: str
    sequence: int
    weight: float
    staleness: int = 0
    left_out: bool = False


@dataclass(frozen=True, slots=True)
class Sequences:
    """A client's newest sequence numbers, 0 for none: in a version, accepted for a round still open, accepted at all."""

    merged: int
    waiting: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What the ledger knows when an update arrives. `same` is the accepted update with the same digest, `other` any other accepted
    update of the same client for the same round; `accepted_sequence` is the client's newest number that was accepted or settled.
    """

    round: Round | None
    same: Submission | None
    other: Submission | None
    accepted_sequence: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bytes that one call moved, refused and broken-off calls included (those have a wire, but no payload or dense bytes).

    dense: the same parameters as fp32 (bf16 is half); wire: counted by the kernel on the socket; relayed: boxes that others carry between
    this call and the client, inside their own messages; flow: of an upload, bytes that arrived one message after another, and the seconds
    between those messages. What a call never said is empty.
    """

    at_ms: int
    direction: Direction
    keyid: str = ""
    expert: str = ""
    run: str = ""
    round: int = 0
    version: int = 0
    dense_fp32_bytes: int = 0
    payload_bytes: int = 0
    wire_received_bytes: int = 0
    wire_sent_bytes: int = 0
    seconds: float = 0.0
    relayed_bytes: int = 0
    flow_bytes: int = 0
    flow_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A submission that was not taken, and why."""

    at_ms: int
    peer: str
    expert: str
    round: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Quality:
    """A task metric of one arm at one version; `client` is empty for the mean over clients, in which it counts by `num_examples`: the
    number of examples that it was measured on, or the weight that the strategy goes by, 0 or more. reporter: the name of who stated
    it with a package, empty where it was measured in a round.
    """

    at_ms: int
    expert: str
    run: str
    round: int
    version: int
    arm: Arm
    client: str
    metric: str
    value: float
    num_examples: float
    reporter: str = ""
