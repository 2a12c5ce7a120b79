"""A digest is a name, not a key: whoever knows it gets no bytes by it, and does not learn whether they are here."""

import grpc
import pytest

from compeft_core import layout_of
from compeft_proto import envelope as dsse
from compeft_proto.chunk_refs import refs_of
from compeft_proto.clock import now_ms
from compeft_proto.errors import from_rpc
from compeft_proto.keys import SigningKey
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from tests.rounds.conftest import EXPERT, World, genesis, synced_by, trained

SECRET = bytes(range(256)) * 5000


def needed_of(world: World, key: SigningKey, kind: dsse.PayloadType, message: object) -> list[bytes]:
    """The chunks that a submission without any bytes is asked for; then it fails for want of them."""
    sealed = dsse.seal(key, kind, message)  # type: ignore[arg-type, type-var]
    replies = list[xp.SubmitReply]()
    with grpc.insecure_channel(world.address) as channel, pytest.raises(grpc.RpcError) as caught:
        replies.extend(rpc.ExpertExchangeStub(channel).Submit(iter([xp.SubmitRequest(envelope=sealed)])))
    assert from_rpc(caught.value, world.address).code == "truncated"
    return asked_for(world, sealed)


def asked_for(world: World, sealed: Envelope) -> list[bytes]:
    """The first answer to a sealed manifest."""
    with grpc.insecure_channel(world.address) as channel:
        call = rpc.ExpertExchangeStub(channel).Submit(iter([xp.SubmitRequest(envelope=sealed)]))
        first = next(call)
        call.cancel()
    return [chunk.sha256 for chunk in first.needed.chunks]


def stored(world: World) -> list[pb.ChunkRef]:
    """A payload that lies in the store, and belongs to an update of another member."""
    client, task = world.edge("owner"), world.open_round()
    synced_by(client, task)
    client.submit(task, trained(1))
    world.close_round()
    version = world.ledger.versions(EXPERT, 0, 1)[0]
    return list(pb.VersionManifest.FromString(pb_envelope(version.envelope)).chunks)


def pb_envelope(sealed: bytes) -> bytes:
    return Envelope.FromString(sealed).payload


def package(key: SigningKey, name: str, refs: list[pb.ChunkRef], digest: bytes) -> pb.Package:
    return pb.Package(expert=name, version=0, sha256=digest, chunks=refs, keyid=key.keyid, issued_at_ms=now_ms())


def test_a_package_that_names_chunks_of_others_is_asked_for_their_bytes(world: World) -> None:
    refs, thief = stored(world), world.enrol("thief", "conductor")
    absent = refs_of(SECRET)
    for named in (refs, absent):
        asked = needed_of(world, thief, dsse.PACKAGE, package(thief, "thiefs-own", named, bytes(32)))
        assert asked == [ref.sha256 for ref in named]
    assert world.ledger.expert("thiefs-own") is None


def test_a_snapshot_of_a_genesis_that_names_chunks_of_others_is_asked_for_their_bytes(world: World) -> None:
    refs, thief = stored(world), world.enrol("thief", "conductor")
    layout = layout_of({"a": (refs[0].size // 4 + 1,)}) if refs[0].size % 4 else layout_of({"a": (refs[0].size // 4,)})
    made = genesis(layout, "thiefs-own")
    made.ClearField("seeded")
    made.keyid, made.issued_at_ms = thief.keyid, now_ms()
    made.snapshot.chunks.extend([replaced(refs[0], 4 * layout.size)])
    assert needed_of(world, thief, dsse.GENESIS, made) == [refs[0].sha256]


def replaced(ref: pb.ChunkRef, size: int) -> pb.ChunkRef:
    return pb.ChunkRef(sha256=ref.sha256, size=size)


def test_an_update_whose_bytes_another_client_has_sent_is_asked_for_them_again(world: World) -> None:
    task = world.open_round()
    first, second = world.edge("first"), world.edge("second")
    for client in (first, second):
        synced_by(client, task)
    first.submit(task, trained(1))
    second.submit(task, trained(1))
    digests = {s.update_digest for s in world.ledger.submissions(EXPERT, task.run, task.round)}
    up = [t for t in world.transfers_of(EXPERT, "up", 3) if t.payload_bytes and t.run]
    assert len(digests) == 2
    assert len({t.payload_bytes for t in up}) == 1
    assert all(t.wire_received_bytes > t.payload_bytes for t in up)


def test_a_chunk_of_no_version_of_the_answer_is_not_streamed(world: World) -> None:
    refs, thief = stored(world), world.enrol("thief")
    asked = pb.SyncRequest(expert=EXPERT, keyid=thief.keyid, nonce=bytes(16), issued_at_ms=now_ms(), want_version=0)
    calls = [
        xp.SyncCall(envelope=dsse.seal(thief, dsse.SYNC_REQUEST, asked)),
        xp.SyncCall(want=xp.NeededChunk(sha256=refs[0].sha256)),
    ]
    with grpc.insecure_channel(world.address) as channel, pytest.raises(grpc.RpcError) as caught:
        list(rpc.ExpertExchangeStub(channel).Sync(iter(calls)))
    assert from_rpc(caught.value, world.address).code == "forbidden"
