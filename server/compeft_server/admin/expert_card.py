"""The card of one expert as a frozen value, read from the ledger, for `compeft experts show`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from compeft_core import Layout
from compeft_proto.base_model import BaseModel
from compeft_proto.clock import now_ms
from compeft_server.admin.lineage import VersionOrigin
from compeft_server.aggregation.access import Access
from compeft_server.aggregation.expert_log import ExpertLog
from compeft_server.domain.channels import CHANNELS, ChannelName, Move
from compeft_server.domain.policy import Rule, as_time, describe, retired, standing
from compeft_server.ledger.ledger import Ledger

NEWEST = 10
"""Versions in the text; the JSON has all."""


@dataclass(frozen=True, slots=True)
class ExpertCard:
    """An expert with its origin, versions, channels, policy and contributors. contributors: number of updates, by member."""

    expert: str
    base_model: BaseModel
    adapter_config_digest: bytes
    layout: Layout
    owner: str
    retired: bool
    retired_versions: frozenset[int]
    channels: Mapping[ChannelName, int | None]
    rules: Sequence[Rule]
    versions: Sequence[VersionOrigin]
    contributors: Mapping[str, int]

    @property
    def payload_bytes(self) -> int:
        """Bytes of all versions: what somebody who starts with nothing fetches."""
        return sum(v.payload_bytes for v in self.versions)


@dataclass(frozen=True, slots=True)
class ExpertRow:
    """One expert in a list: its name, newest version, number of parameters, and whether it is retired."""

    expert: str
    version: int
    parameters: int
    retired: bool


def list_experts(ledger: Ledger) -> list[ExpertRow]:
    """All experts, retired ones too."""
    found = [(name, ledger.expert(name)) for name in ledger.experts()]
    return [
        ExpertRow(name, ledger.head(name), e.layout.size, None in retired(ledger.terms.retirements(name)))
        for name, e in found
        if e
    ]


def read_card(ledger: Ledger, log: ExpertLog, versions: Sequence[VersionOrigin], name: str) -> ExpertCard:
    """The card of an expert that exists; `versions` are its lineage."""
    expert, gone = log.expert(name), retired(ledger.terms.retirements(name))
    return ExpertCard(
        expert=name,
        base_model=log.base_model(expert),
        adapter_config_digest=expert.adapter_config_digest,
        layout=expert.layout,
        owner=Access(ledger, log, now_ms).owner(name),
        retired=None in gone,
        retired_versions=frozenset(v.version for v in versions if v.version in gone),
        channels=_channels(ledger.terms.channel_moves(name), versions[-1].version),
        rules=standing(ledger.terms.rules(name)),
        versions=versions,
        contributors=dict(sorted(Counter(member for v in versions for member, _ in v.contributors).items())),
    )


def to_json(card: ExpertCard) -> dict[str, object]:
    """The card as values for JSON."""
    layout, base = card.layout, card.base_model
    return {
        "expert": card.expert,
        "owner": card.owner,
        "retired": card.retired,
        "base_model": {"id": base.id, "revision": base.revision, "weights_digest": base.weights_digest.hex()},
        "adapter_config_digest": card.adapter_config_digest.hex(),
        "layout": {
            "digest": layout.digest.hex(),
            "tensors": len(layout.tensors),
            "ternary_parameters": layout.ternary_size,
            "dense_parameters": layout.dense_size,
        },
        "channels": dict(card.channels),
        "policy": [asdict(rule) for rule in card.rules],
        "payload_bytes": card.payload_bytes,
        "dense_fp32_bytes": 4 * layout.size,
        "contributors": dict(card.contributors),
        "versions": [
            {
                "version": v.version,
                "created_at_ms": v.created_at_ms,
                "payload_bytes": v.payload_bytes,
                "state_digest": v.state_digest.hex(),
                "retired": v.version in card.retired_versions,
                "contributors": sorted(member for member, _ in v.contributors),
            }
            for v in card.versions
        ],
    }


def to_text(card: ExpertCard) -> str:
    """The card as text: one fact a line, the newest versions last."""
    layout, base = card.layout, card.base_model
    channels = [f"{name} {'nowhere yet' if at is None else f'version {at}'}" for name, at in card.channels.items()]
    contributors = [f"{name} ({count} update{'s' if count != 1 else ''})" for name, count in card.contributors.items()]
    facts = {
        "expert": card.expert + ("  retired" if card.retired else ""),
        "owner": card.owner or "unknown",
        "base model": f"{base.id or 'of no name'}{f' at {base.revision}' if base.revision else ''}",
        "weights": base.weights_digest.hex(),
        "layout": f"{len(layout.tensors)} tensors, {layout.ternary_size:,} ternary and {layout.dense_size:,} dense parameters",
        "size": f"{card.payload_bytes:,} bytes for all versions; one dense copy is {4 * layout.size:,} in fp32",
        "channels": ", ".join(channels),
        "contributors": ", ".join(contributors) or "none yet",
    }
    lines = [f"{name:<14}{fact}" for name, fact in facts.items()]
    lines += [f"{'policy' if number == 0 else '':<14}{describe(rule)}" for number, rule in enumerate(card.rules)]
    lines += [] if card.rules else [f"{'policy':<14}nobody but {card.owner or 'the owner'}: see `compeft policy allow`"]
    return "\n".join([*lines, *_version_lines(card)])


def _version_lines(card: ExpertCard) -> list[str]:
    left_out = len(card.versions) - NEWEST
    lines = [f"versions      {left_out} older ones: `compeft experts log {card.expert}`"] if left_out > 0 else []
    for v in card.versions[-NEWEST:]:
        marks: list[str] = [name for name, at in card.channels.items() if at == v.version]
        marks += ["retired"] if v.version in card.retired_versions else []
        lines.append(
            f"version {v.version:<6}{as_time(v.created_at_ms)}  {v.payload_bytes:>12,} bytes  {', '.join(marks)}".rstrip()
        )
    return lines


def _channels(moves: Sequence[Move], head: int) -> dict[ChannelName, int | None]:
    """Where each channel points; None: nowhere yet."""
    places: dict[ChannelName, int | None] = dict.fromkeys(CHANNELS)
    for move in moves:
        places[move.channel] = move.version
    return places | {"canary": head}
