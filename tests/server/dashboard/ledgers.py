"""A ledger with a long story in it, written straight into its tables: experts, rounds, transfers, quality, refusals, signed versions."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from compeft_core import Layout, layout_of
from compeft_proto import envelope as dsse
from compeft_proto.convert import layout_to_proto
from compeft_proto.keys import new_key
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.data_directory import open_ledger
from compeft_server.domain.records import Refusal
from compeft_server.identity.aggregator_keys import own_key
from compeft_server.ledger import schema
from compeft_server.ledger.ledger import Ledger

LAYOUT = layout_of({"a.lora_A": (8, 1000), "a.lora_B": (1000, 8)})
START_MS = 1_790_000_000_000
ROUND_MS = 60_000


@dataclass(frozen=True)
class Story:
    """What is told: `rounds` of an expert with `clients`; quality in every round, or none at all."""

    expert: str = "sentiment"
    rounds: int = 12
    clients: int = 4
    measured: bool = True
    now_ms: int = START_MS


def tell(data: Path, *stories: Story) -> Ledger:
    """A ledger in the data directory with these stories, the last round of each still open."""
    ledger = open_ledger(data)
    key = own_key(data)
    edges = [new_key().public for _ in range(max((s.clients for s in stories), default=0))]
    for number, public in enumerate(edges):
        ledger.enrol(f"edge-{number}", public, "edge", START_MS)
    ledger.enrol("conductor", new_key().public, "conductor", START_MS)
    with ledger._engine.begin() as connection:  # the tables themselves: ten thousand rounds one by one would take minutes
        for story in stories:
            for table, rows in _rows(story, [e.keyid for e in edges[: story.clients]], key).items():
                connection.execute(sa.insert(schema.metadata.tables[table]), rows) if rows else None
    return ledger


def _rows(story: Story, keyids: list[str], key: Any) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {
        t: [] for t in ("experts", "versions", "rounds", "submissions", "transfers", "quality")
    }
    name, first = story.expert, story.now_ms - ROUND_MS * (story.rounds + 1)
    rows["experts"].append(_expert(name, LAYOUT, first))
    for number in range(story.rounds + 1):
        at, last = first + ROUND_MS * number, number == story.rounds
        rows["versions"].append(_version(name, number, at, keyids, key))
        rows["transfers"] += [_transfer(name, k, number, at, "down", 0 if number == 0 else 1900) for k in keyids]
        rows["quality"] += _quality(story, keyids, number, at) if story.measured else []
        if number:
            rows["rounds"].append(_round(name, number, at, number))
            rows["submissions"] += [_submission(name, k, number, at, number) for k in keyids]
            rows["transfers"] += [_transfer(name, k, number, at, "up", 700) for k in keyids]
        if last:
            rows["rounds"].append(_round(name, number + 1, at + ROUND_MS, None))
            rows["submissions"] += [_submission(name, k, number + 1, at + ROUND_MS, None) for k in keyids[:1]]
    return rows


def _expert(name: str, layout: Layout, at_ms: int) -> dict[str, Any]:
    return {
        "expert": name,
        "base_model_digest": b"b" * 32,
        "adapter_config_digest": b"c" * 32,
        "layout": layout_to_proto(layout).SerializeToString(),
        "layout_digest": layout.digest,
        "created_at_ms": at_ms,
    }


def _version(name: str, number: int, at_ms: int, keyids: list[str], key: Any) -> dict[str, Any]:
    manifest = pb.VersionManifest(expert=name, version=number, state_digest=bytes([number % 256]) * 32, run="run-1", round=number)
    if number == 0:
        manifest.genesis.seeded.seed = 7
    else:
        manifest.merge_method, manifest.coefficient = "average", 1.0
        manifest.coding.CopyFrom(pb.Coding(codec="context", ternary_size=LAYOUT.size, kept=3200, scales=[0.00123]))
        manifest.coding.compression.CopyFrom(pb.Compression(density=0.2, scale_rule="norm", factor=1.0, granularity="vector"))
        manifest.contributions.extend(
            pb.Contribution(update_digest=bytes(32), keyid=k, sequence=number, weight=300) for k in keyids
        )
    return {
        "expert": name,
        "version": number,
        "envelope": dsse.seal(key, dsse.VERSION, manifest).SerializeToString(),
        "state_digest": manifest.state_digest,
        "residual_chunks": b"",
        "run": "run-1" if number else "",
        "round": number,
        "payload_bytes": 1900 if number else 0,
        "merge_seconds": 0.012 if number else 0.0,
        "created_at_ms": at_ms,
    }


def _round(name: str, number: int, at_ms: int, version: int | None) -> dict[str, Any]:
    return {
        "expert": name,
        "run": "run-1",
        "round": number,
        "nonce": b"n" * 16,
        "base_version": number - 1,
        "opened_at_ms": at_ms - ROUND_MS,
        "deadline_ms": at_ms + 10 * ROUND_MS,
        "closed_at_ms": None if version is None else at_ms,
        "version": version,
    }


def _submission(name: str, keyid: str, number: int, at_ms: int, merged_in: int | None) -> dict[str, Any]:
    return {
        "update_digest": f"{name[:8]:>8}{keyid[:12]}{number:>12}".encode(),
        "expert": name,
        "run": "run-1",
        "round": number,
        "keyid": keyid,
        "sequence": number,
        "weight": 300,
        "envelope": b"",
        "receipt": b"",
        "accepted_at_ms": at_ms,
        "merged_in": merged_in,
    }


def _transfer(name: str, keyid: str, version: int, at_ms: int, direction: str, payload: int) -> dict[str, Any]:
    received, sent = (payload + 900, 300) if direction == "up" else (300, payload + 1100)
    return {
        "at_ms": at_ms,
        "keyid": keyid,
        "expert": name,
        "run": "run-1",
        "round": version,
        "version": version,
        "direction": direction,
        "dense_fp32_bytes": 4 * LAYOUT.size,
        "payload_bytes": payload,
        "wire_received_bytes": received,
        "wire_sent_bytes": sent,
        "seconds": 0.05,
    }


def _quality(story: Story, keyids: list[str], number: int, at_ms: int) -> list[dict[str, Any]]:
    gained = 0.05 * (1 - math.exp(-number / (1 + story.rounds / 5)))
    arms = [("synced", 0.797 + gained)]
    arms += [("base", 0.797)] if number == 0 else []
    arms += [("dense", 0.849)] if number == story.rounds else []
    place = {"at_ms": at_ms, "expert": story.expert, "run": "run-1", "round": number, "version": number, "metric": "accuracy"}
    return [
        place | {"arm": arm, "client": k, "value": value + 0.004 * i, "num_examples": 250}
        for arm, value in arms
        for i, k in enumerate(keyids)
    ]


def refuse(ledger: Ledger, count: int, now_ms: int, code: str = "bad_signature") -> None:
    """Refuse a number of submissions."""
    for number in range(count):
        reason = f"key {number:032x} did not make this signature <script>alert(1)</script>"
        ledger.record_refusal(Refusal(now_ms + number, f"ipv4:192.0.2.{number % 250}:4000", "sentiment", 3, code, reason))
