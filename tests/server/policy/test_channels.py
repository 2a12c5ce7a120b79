"""Channels: named places in an expert log. canary is the newest version; stable is where the operator put it."""

import grpc
import pytest

from compeft_core.errors import FormatError, InputError
from compeft_proto import answer_checks
from compeft_proto import envelope as dsse
from compeft_proto.clock import now_ms
from compeft_proto.errors import ReplayError, UnknownExpertError, WrongBaseError, from_rpc
from compeft_proto.keys import new_key
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_proto.v1 import expert_pb2 as pb
from compeft_server.admin import policy_admin
from compeft_server.ledger.audit import check
from tests.server.policy.conftest import EXPERT, World, grow


def promote(world: World, version: int, channel: str = "stable") -> None:
    policy_admin.promote(world.ledger, EXPERT, version, channel, now_ms())


def test_canary_is_the_newest_version_and_stable_where_the_operator_put_it(world: World) -> None:
    grow(world, 2)
    promote(world, 1)
    reader = world.edge("reader")
    assert reader.sync(EXPERT, channel="stable").version == 1
    assert reader.sync(EXPERT, channel="canary").version == 2


def test_a_channel_that_points_nowhere_yet_is_named_with_the_way_out(world: World) -> None:
    with pytest.raises(UnknownExpertError, match=r"no stable version yet.*compeft experts promote"):
        world.edge("reader").sync(EXPERT, channel="stable")


def test_a_client_follows_a_promoted_channel_forward(world: World) -> None:
    grow(world, 2)
    reader = world.edge("reader")
    promote(world, 0)
    assert reader.sync(EXPERT, channel="stable").version == 0
    promote(world, 2)
    assert reader.sync(EXPERT, channel="stable").vector.tobytes() == world.edge("other").sync(EXPERT, 2).vector.tobytes()


def test_a_channel_that_was_rolled_back_is_followed_only_if_told_to(world: World) -> None:
    grow(world, 2)
    reader = world.edge("reader")
    promote(world, 2)
    reader.sync(EXPERT, channel="stable")
    promote(world, 1)
    with pytest.raises(ReplayError, match="at version 2 here, its channel stable at 1, rolled back by its operator from 2"):
        reader.sync(EXPERT, channel="stable")
    assert reader.sync(EXPERT).version == 2, "the local copy is what it was"
    back = reader.sync(EXPERT, channel="stable", go_back=True)
    assert back.version == 1
    assert back.vector.tobytes() == world.edge("other").sync(EXPERT, 1).vector.tobytes()
    assert reader.sync(EXPERT).version == 2


def test_a_client_that_is_ahead_of_its_channel_is_not_told_of_a_rollback(world: World) -> None:
    grow(world, 2)
    reader = world.edge("reader")
    reader.sync(EXPERT)
    promote(world, 1)
    with pytest.raises(ReplayError, match=r"its channel stable at 1: a client goes back only"):
        reader.sync(EXPERT, channel="stable")


def test_a_client_goes_back_to_a_version_if_told_to(world: World) -> None:
    grow(world, 2)
    reader = world.edge("reader")
    reader.sync(EXPERT)
    with pytest.raises(ReplayError, match="does not go back"):
        reader.sync(EXPERT, 1)
    assert reader.sync(EXPERT, 1, go_back=True).version == 1


def test_a_version_and_a_channel_at_once_are_refused_on_both_sides(world: World) -> None:
    with pytest.raises(InputError, match="name one of them"):
        world.edge("reader").sync(EXPERT, 0, channel="canary")
    key = world.enrol("raw")
    request = pb.SyncRequest(expert=EXPERT, want_version=0, channel="canary", keyid=key.keyid, issued_at_ms=now_ms())
    stub = rpc.ExpertExchangeStub(grpc.insecure_channel(world.address))
    asked = xp.SyncCall(envelope=dsse.seal(key, dsse.SYNC_REQUEST, request))
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Sync(iter([asked])))
    error = from_rpc(caught.value, world.address)
    assert isinstance(error, FormatError)
    assert "name one" in str(error)


def test_an_unknown_channel_is_refused(world: World) -> None:
    with pytest.raises(InputError, match="there are stable and canary"):
        world.edge("reader").sync(EXPERT, channel="nightly")
    with pytest.raises(InputError, match="there are stable and canary"):
        promote(world, 0, "nightly")


def test_what_cannot_be_promoted_is_named(world: World) -> None:
    with pytest.raises(InputError, match="canary is the newest version, always"):
        promote(world, 0, "canary")
    with pytest.raises(UnknownExpertError, match="versions 0 to 0, not 1"):
        promote(world, 1)


def test_every_move_is_in_the_audit_log_and_the_same_again_is_nothing(world: World) -> None:
    for _ in range(2):
        promote(world, 0)
    entries = world.ledger.audit_entries()
    assert [e.event.detail for e in entries if e.event.action == "promote"] == ['{"channel":"stable","version":0}']
    check(entries)


def test_a_statement_of_another_channel_is_not_believed() -> None:
    request = pb.SyncRequest(expert=EXPERT, keyid=new_key().keyid, nonce=b"n" * 16, channel="stable")
    statement = pb.SyncStatement(expert=EXPERT, keyid=request.keyid, nonce=request.nonce, channel="canary")
    with pytest.raises(WrongBaseError, match="asked was for 'stable'"):
        answer_checks.check_statement(statement, request, -1)
