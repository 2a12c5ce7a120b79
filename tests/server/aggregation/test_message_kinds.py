"""The kinds of message that an aggregator takes are the rows of one table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compeft_core.errors import FormatError
from compeft_proto import envelope as dsse
from compeft_proto.chunk_refs import refs_of
from compeft_proto.errors import PayloadTypeError
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_server.aggregation import aggregator as module
from compeft_server.aggregation.aggregator import KINDS, Aggregator, Upload
from compeft_server.aggregation.message_kind import MessageKind, Offer, Record
from compeft_server.chunks.chunked_payload import Chunked
from compeft_server.data_directory import open_ledger, open_store
from compeft_server.domain.limits import Limits
from compeft_server.domain.records import Transfer
from compeft_server.rpc.call_transfers import accepted, of_offer

SNAPSHOT_BYTES = b"a state" * 100


class SnapshotKind(MessageKind[pb.SnapshotManifest, int]):
    """A fourth kind: a snapshot that a member sends. Checking returns its size, the answer names it."""

    payload_type = dsse.SNAPSHOT
    exclusive = False

    def refs(self, message: pb.SnapshotManifest) -> Sequence[pb.ChunkRef]:
        return message.chunks

    def admit(self, offer: Offer[pb.SnapshotManifest, int]) -> Envelope | Record[int]:
        return lambda size: dsse.seal(self._parts.key, dsse.RECEIPT, pb.Receipt(update_digest=offer.digest, payload_bytes=size))

    def check(self, offer: Offer[pb.SnapshotManifest, int], payload: Chunked) -> int:
        if payload[:2] != b"a ":
            raise FormatError("not a state")
        return len(payload)

    def described(self, transfer: Transfer, message: pb.SnapshotManifest) -> Transfer:
        return replace(transfer, expert=message.expert, version=message.version)

    def parameters(self, _message: pb.SnapshotManifest, _answer: Envelope) -> int:
        return 7


def running(folder: Path) -> tuple[Aggregator, SigningKey]:
    """An aggregator on an empty data directory, and the key of its member."""
    key, ledger = new_key(), open_ledger(folder)
    ledger.enrol("berlin", key.public, "edge", 1)
    return Aggregator(new_key(), open_store(folder), ledger, Limits(), lambda: 1), key


def sealed_snapshot(key: SigningKey, data: bytes) -> Envelope:
    """A sealed snapshot of one chunk."""
    return dsse.seal(key, dsse.SNAPSHOT, pb.SnapshotManifest(expert="sentiment", version=3, chunks=refs_of(data)))


def sent(aggregator: Aggregator, key: SigningKey, data: bytes) -> tuple[Offer[Any, Any], Envelope]:
    """A snapshot, its chunk and the answer."""
    offer = aggregator.open(sealed_snapshot(key, data))
    upload = aggregator.admit(offer)
    assert isinstance(upload, Upload)
    ((ref, _),) = upload.needed
    aggregator.receive(upload, ref, data)
    return offer, aggregator.finish(upload)


def test_each_kind_has_a_payload_type_of_its_own() -> None:
    assert len({kind.payload_type.name for kind in KINDS}) == len(KINDS) == 3


def test_a_fourth_kind_is_one_row_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KINDS", (*KINDS, SnapshotKind))
    aggregator, key = running(tmp_path)
    offer, answer = sent(aggregator, key, SNAPSHOT_BYTES)
    receipt = pb.Receipt.FromString(answer.payload)
    assert (receipt.update_digest, receipt.payload_bytes) == (offer.digest, 700)
    moved = accepted(of_offer(Transfer(at_ms=1, direction="up"), offer), offer, answer)
    assert (moved.keyid, moved.expert, moved.version, moved.dense_fp32_bytes, moved.payload_bytes) == (
        key.keyid,
        "sentiment",
        3,
        28,
        700,
    )


def test_chunks_that_fail_the_check_of_their_kind_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KINDS", (*KINDS, SnapshotKind))
    aggregator, key = running(tmp_path)
    with pytest.raises(FormatError, match="not a state"):
        sent(aggregator, key, b"something else")
    upload = aggregator.admit(aggregator.open(sealed_snapshot(key, b"something else")))
    assert isinstance(upload, Upload)
    assert [here for _, here in upload.needed] == [0]


def test_a_payload_type_without_a_row_is_refused(tmp_path: Path) -> None:
    aggregator, key = running(tmp_path)
    with pytest.raises(PayloadTypeError, match=r"sealed '.*snapshot.*', expected '.*update"):
        aggregator.open(sealed_snapshot(key, SNAPSHOT_BYTES))
