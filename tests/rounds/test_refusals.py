"""Bad input, one test each: the aggregator answers with its typed error, and store, ledger and residuals stay as they were."""

import queue
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from compeft_client.exchange.edge_client import EdgeClient, Trained
from compeft_client.identity.edge_config import Edge
from compeft_core import compress, layout_of, parse, state_digest
from compeft_core.errors import CompeftError, FormatError, LayoutMismatchError, LimitError, NotFiniteError
from compeft_proto import envelope as dsse
from compeft_proto.chunk_refs import refs_of
from compeft_proto.clock import now_ms
from compeft_proto.convert import coding_of, payload_of
from compeft_proto.errors import (
    BY_CODE,
    BusyError,
    ChunkMismatchError,
    DuplicateError,
    ExpiredError,
    ForbiddenError,
    PayloadTypeError,
    ReplayError,
    RoundClosedError,
    SignatureError,
    TruncatedError,
    UnknownExpertError,
    UnknownKeyError,
    UnreachableError,
    WrongAdapterError,
    WrongBaseError,
    from_rpc,
)
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.round_task import Origin, RoundTask
from compeft_proto.transport import SubmitDialogue, upload
from compeft_proto.v1 import exchange_pb2 as xp
from compeft_proto.v1 import exchange_pb2_grpc as rpc
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope
from tests.rounds.conftest import EXPERT, LAYOUT, ORIGIN, UPLINK, World, synced_by, task_vector, trained

Alter = Callable[[pb.UpdateManifest], None]


class Sender:
    """A client that says what the test wants, not what EdgeClient would."""

    def __init__(self, world: World, key: SigningKey) -> None:
        self.world, self.key = world, key
        self.channel = grpc.insecure_channel(world.address)
        self.stub = rpc.ExpertExchangeStub(self.channel)

    def manifest(self, task: RoundTask, payload: bytes, alter: Alter = lambda _: None) -> pb.UpdateManifest:
        """A correct manifest, then altered."""
        version = self.world.ledger.versions(EXPERT, task.version - 1, task.version)[0]
        update = pb.UpdateManifest(
            expert=EXPERT,
            base_version=task.version,
            base_state_digest=version.state_digest,
            run=task.run,
            round=task.round,
            round_nonce=task.nonce,
            keyid=self.key.keyid,
            sequence=1,
            base_model_digest=ORIGIN.base_model_digest,
            layout_digest=LAYOUT.digest,
            adapter_config_digest=ORIGIN.adapter_config_digest,
            coding=coding_of(parse(payload), UPLINK),
            num_examples=10,
            issued_at_ms=now_ms(),
            expires_at_ms=now_ms() + 60_000,
            chunks=refs_of(payload),
        )
        alter(update)
        return update

    def send(self, envelope: Envelope, payload: bytes, refs: Any) -> Envelope:
        """Submit, as far as the aggregator lets it."""
        with SubmitDialogue(self.stub.Submit, self.world.address) as dialogue:
            return upload(dialogue, envelope, refs, payload)

    def submit(self, task: RoundTask, alter: Alter = lambda _: None, payload: bytes | None = None) -> Envelope:
        """A whole submission, altered before sealing."""
        payload = payload or good_payload()
        update = self.manifest(task, payload, alter)
        return self.send(dsse.seal(self.key, dsse.UPDATE, update), payload, update.chunks)

    def raw(self, *parts: xp.SubmitRequest) -> list[xp.SubmitReply]:
        """Exactly these messages, then the end of the stream."""
        try:
            return list(self.stub.Submit(iter(parts)))
        except grpc.RpcError as error:
            raise from_rpc(error, self.world.address) from error


def good_payload(seed: int = 1) -> bytes:
    return payload_of(LAYOUT, compress(LAYOUT, task_vector(seed), UPLINK)).blob


@pytest.fixture
def sender(world: World) -> Iterator[Sender]:
    made = Sender(world, world.enrol("sender"))
    yield made
    made.channel.close()


def refused(world: World, expected: type[CompeftError], words: str, attempt: Callable[[], object]) -> None:
    """`attempt` is answered with `expected`, in one line that has `words`, and has changed nothing."""
    before = world.everything()
    with pytest.raises(expected) as caught:
        attempt()
    message = str(caught.value)
    assert type(caught.value) is expected
    assert words in message
    assert "\n" not in message
    assert world.everything() == before


def test_a_good_submission_of_the_sender_is_accepted(world: World, sender: Sender) -> None:
    sender.submit(world.open_round())
    assert world.close_round().accepted == 1


def test_an_unknown_key_is_refused(world: World) -> None:
    stranger = Sender(world, new_key())
    task = world.open_round()
    refused(world, UnknownKeyError, "no enrolled key", lambda: stranger.submit(task))


def test_a_revoked_key_is_refused(world: World, sender: Sender) -> None:
    task = world.open_round()
    world.ledger.revoke("sender", now_ms())
    refused(world, UnknownKeyError, "no enrolled key", lambda: sender.submit(task))


def test_a_readers_key_may_not_submit(world: World) -> None:
    reader = Sender(world, world.enrol("reader", "reader"))
    task = world.open_round()
    refused(world, ForbiddenError, "role reader", lambda: reader.submit(task))


def test_an_edge_key_may_not_conduct(world: World, sender: Sender) -> None:
    opening = pb.RoundOpening(expert=EXPERT, run="x", round=1, keyid=sender.key.keyid, issued_at_ms=now_ms())

    def attempt() -> None:
        try:
            sender.stub.Conduct(dsse.seal(sender.key, dsse.ROUND_OPENING, opening))
        except grpc.RpcError as error:
            raise from_rpc(error, world.address) from error

    refused(world, ForbiddenError, "role edge", attempt)


def test_a_manifest_that_names_another_clients_key_is_refused(world: World, sender: Sender) -> None:
    other = world.enrol("other").keyid
    task = world.open_round()
    refused(world, ForbiddenError, other, lambda: sender.submit(task, lambda u: setattr(u, "keyid", other)))


def test_an_altered_byte_in_the_manifest_is_refused(world: World, sender: Sender) -> None:
    task = world.open_round()
    payload = good_payload()
    sealed = dsse.seal(sender.key, dsse.UPDATE, sender.manifest(task, payload))
    sealed.payload = sealed.payload[:40] + bytes([sealed.payload[40] ^ 1]) + sealed.payload[41:]
    refused(world, SignatureError, "does not fit", lambda: sender.send(sealed, payload, refs_of(payload)))


def test_an_altered_byte_in_the_signature_is_refused(world: World, sender: Sender) -> None:
    task = world.open_round()
    payload = good_payload()
    sealed = dsse.seal(sender.key, dsse.UPDATE, sender.manifest(task, payload))
    sig = sealed.signatures[0].sig
    sealed.signatures[0].sig = bytes([sig[0] ^ 1]) + sig[1:]
    refused(world, SignatureError, "does not fit", lambda: sender.send(sealed, payload, refs_of(payload)))


def test_an_altered_byte_in_a_chunk_is_refused_and_a_second_try_succeeds(world: World, sender: Sender) -> None:
    task = world.open_round()
    payload = good_payload()
    update = sender.manifest(task, payload)
    sealed = dsse.seal(sender.key, dsse.UPDATE, update)
    altered = payload[:-1] + bytes([payload[-1] ^ 1])
    parts = (xp.SubmitRequest(envelope=sealed), xp.SubmitRequest(data=altered))
    refused(world, ChunkMismatchError, "send it again", lambda: sender.raw(*parts))
    sender.send(sealed, payload, update.chunks)
    assert world.close_round().accepted == 1


def test_a_payload_that_is_not_what_its_manifest_says_is_refused(world: World, sender: Sender) -> None:
    task = world.open_round()

    def lie(update: pb.UpdateManifest) -> None:
        update.coding.kept += 1

    refused(world, FormatError, "manifest states coding", lambda: sender.submit(task, lie))


def test_a_malformed_payload_is_refused(world: World, sender: Sender) -> None:
    task = world.open_round()
    payload = good_payload()
    malformed = payload[: len(payload) // 2]

    def alter(update: pb.UpdateManifest) -> None:
        del update.chunks[:]
        update.chunks.extend(refs_of(malformed))

    update = sender.manifest(task, payload, alter)
    sealed = dsse.seal(sender.key, dsse.UPDATE, update)
    refused(world, FormatError, "", lambda: sender.send(sealed, malformed, update.chunks))


def test_a_sealed_message_of_another_type_is_refused(world: World, sender: Sender) -> None:
    sealed = dsse.seal(sender.key, dsse.SYNC_REQUEST, pb.SyncRequest(expert=EXPERT))
    refused(world, PayloadTypeError, "expected", lambda: sender.raw(xp.SubmitRequest(envelope=sealed)))


def test_a_call_that_does_not_begin_with_an_envelope_is_refused(world: World, sender: Sender) -> None:
    refused(world, FormatError, "first message", lambda: sender.raw(xp.SubmitRequest(data=b"x")))
    refused(world, FormatError, "first message", lambda: sender.raw())


def test_sealed_bytes_that_are_no_message_are_refused(world: World, sender: Sender) -> None:
    name = dsse.UPDATE.name
    junk = b"\xff" * 50
    sig = sender.key.private.sign(b"DSSEv1 %d %b %d %b" % (len(name), name.encode(), len(junk), junk))
    sealed = Envelope(payload=junk, payload_type=name)
    sealed.signatures.add(sig=sig, keyid=sender.key.keyid)
    refused(world, FormatError, "not such a message", lambda: sender.raw(xp.SubmitRequest(envelope=sealed)))


def test_an_oversize_manifest_is_refused_before_its_signature_is_looked_at(world: World, sender: Sender) -> None:
    sealed = Envelope(payload=b"x" * (dsse.MAX_PAYLOAD_BYTES + 1), payload_type=dsse.UPDATE.name)
    refused(world, LimitError, "the cap is", lambda: sender.raw(xp.SubmitRequest(envelope=sealed)))


def test_an_oversize_message_is_refused_by_the_transport(world: World, sender: Sender) -> None:
    sealed = Envelope(payload=b"x" * (18 * 2**20), payload_type=dsse.UPDATE.name)
    before = world.everything()
    with pytest.raises(CompeftError, match="RESOURCE_EXHAUSTED"):
        sender.raw(xp.SubmitRequest(envelope=sealed))
    assert world.everything() == before


def test_an_oversize_claimed_chunk_is_refused(world: World, sender: Sender) -> None:
    task = world.open_round()

    def claim(update: pb.UpdateManifest) -> None:
        update.chunks[0].size = 2**40

    refused(world, LimitError, "expected 1 to", lambda: sender.submit(task, claim))


def test_an_oversize_claimed_payload_is_refused(world: World, sender: Sender) -> None:
    task = world.open_round()

    def claim(update: pb.UpdateManifest) -> None:
        del update.chunks[:]
        update.chunks.extend(pb.ChunkRef(sha256=bytes(32), size=2**20) for _ in range(2000))

    refused(world, LimitError, "bytes of chunks", lambda: sender.submit(task, claim))


def test_more_bytes_than_a_chunk_claims_are_refused(world: World, sender: Sender) -> None:
    task = world.open_round()
    payload = good_payload()
    sealed = dsse.seal(sender.key, dsse.UPDATE, sender.manifest(task, payload))
    parts = (xp.SubmitRequest(envelope=sealed), xp.SubmitRequest(data=payload + b"x"))
    refused(world, FormatError, "were sent", lambda: sender.raw(*parts))


def test_a_truncated_upload_is_refused_and_goes_on_where_it_stopped(world: World, sender: Sender) -> None:
    task = world.open_round()
    payload = good_payload()
    update = sender.manifest(task, payload)
    sealed = dsse.seal(sender.key, dsse.UPDATE, update)
    half = len(payload) // 2
    parts = (xp.SubmitRequest(envelope=sealed), xp.SubmitRequest(data=payload[:half]))
    refused(world, TruncatedError, f"after {half} of {len(payload)} bytes", lambda: sender.raw(*parts))
    replies = sender.raw(xp.SubmitRequest(envelope=sealed), xp.SubmitRequest(data=payload[half:]))
    assert replies[0].needed.chunks[0].offset == half
    assert replies[1].received == update.chunks[0].sha256
    assert world.close_round().accepted == 1


@pytest.mark.parametrize(
    ("field", "value", "expected", "words"),
    [
        ("base_model_digest", b"\x09" * 32, WrongBaseError, "trained on base"),
        ("base_state_digest", b"\x09" * 32, WrongBaseError, "sync first"),
        ("base_version", 5, WrongBaseError, "sync first"),
        ("layout_digest", b"\x09" * 32, LayoutMismatchError, "layout"),
        ("adapter_config_digest", b"\x09" * 32, WrongAdapterError, "adapter configuration"),
        ("num_examples", 10**13, LimitError, "invalid weight 1e+13"),
        ("weight", 1.5e12, LimitError, "invalid weight 1.5e+12: expected a number from 0 to 1e+12"),
        ("weight", -0.5, LimitError, "invalid weight -0.5"),
        ("weight", float("nan"), LimitError, "invalid weight nan"),
        ("weight", float("inf"), LimitError, "invalid weight inf"),
        ("round", 9, RoundClosedError, "round 9"),
        ("run", "other", RoundClosedError, "'other' is unknown"),
        ("expert", "nothing", RoundClosedError, "unknown"),
        ("round_nonce", b"\x00" * 16, ReplayError, "nonce"),
        ("issued_at_ms", 1, ExpiredError, "expired"),
        ("expires_at_ms", 1, ExpiredError, "expired"),
        ("issued_at_ms", 2**50, ExpiredError, "in the future"),
        ("sequence", 0, ReplayError, "sequence number 0"),
    ],
)
def test_a_manifest_with_a_wrong_claim_is_refused(
    world: World, sender: Sender, field: str, value: object, expected: type[CompeftError], words: str
) -> None:
    task = world.open_round()
    refused(world, expected, words, lambda: sender.submit(task, lambda u: setattr(u, field, value)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_or_a_scale_that_is_not_finite_is_refused(world: World, sender: Sender, value: float) -> None:
    task = world.open_round()
    refused(world, NotFiniteError, "metric", lambda: sender.submit(task, lambda u: u.metrics.add(name="loss", value=value)))

    def scale(update: pb.UpdateManifest) -> None:
        update.coding.scales[0] = value

    refused(world, NotFiniteError, "scale", lambda: sender.submit(task, scale))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_refused_by_the_client_itself(world: World, value: float) -> None:
    client = world.edge("edge")
    task = world.open_round()
    synced_by(client, task)
    vector = task_vector(1)
    vector[17] = value
    refused(world, NotFiniteError, "NaN or infin", lambda: client.submit(task, Trained(vector, 10, {}, ORIGIN)))
    client.submit(task, trained(1))
    assert world.close_round().accepted == 1


def test_a_payload_with_a_scale_that_is_not_finite_is_refused(world: World, sender: Sender) -> None:
    task = world.open_round()
    payload = good_payload()
    scale = np.float32(parse(payload).scales[0]).tobytes()
    assert payload.count(scale) == 1
    poisoned = payload.replace(scale, np.float32(np.nan).tobytes())

    def alter(update: pb.UpdateManifest) -> None:
        del update.chunks[:]
        update.chunks.extend(refs_of(poisoned))

    update = sender.manifest(task, payload, alter)
    with pytest.raises(CompeftError, match="scale"):
        sender.send(dsse.seal(sender.key, dsse.UPDATE, update), poisoned, update.chunks)
    assert world.close_round().accepted == 0


def test_the_same_submission_twice_is_one_row_and_the_same_receipt(world: World, sender: Sender) -> None:
    task = world.open_round()
    payload = good_payload()
    update = sender.manifest(task, payload)
    sealed = dsse.seal(sender.key, dsse.UPDATE, update)
    first, second = (sender.send(sealed, payload, update.chunks) for _ in range(2))
    assert first == second
    assert world.close_round().accepted == 1


def test_a_second_different_update_of_one_client_is_refused(world: World, sender: Sender) -> None:
    task = world.open_round()
    sender.submit(task)
    again = good_payload(2)
    refused(world, DuplicateError, "already", lambda: sender.submit(task, lambda u: setattr(u, "sequence", 2), again))


def test_a_submission_for_a_closed_round_is_refused(world: World, sender: Sender) -> None:
    task = world.open_round()
    world.close_round()
    refused(world, RoundClosedError, "closed", lambda: sender.submit(task))


def test_a_submission_after_the_deadline_is_refused(world: World, sender: Sender) -> None:
    task = world.open_round(deadline_s=10.0)
    world.offset_ms[0] = 11_000
    refused(world, RoundClosedError, "ended 1.", lambda: sender.submit(task))


def test_a_replay_of_last_rounds_envelope_is_refused(world: World, sender: Sender) -> None:
    task = world.open_round(1)
    payload = good_payload()
    update = sender.manifest(task, payload)
    sealed = dsse.seal(sender.key, dsse.UPDATE, update)
    sender.send(sealed, payload, update.chunks)
    world.close_round(1)
    world.open_round(2)
    refused(world, ReplayError, "accepted before", lambda: sender.send(sealed, payload, update.chunks))


def test_an_expert_that_does_not_exist_is_named_with_those_that_do(world: World) -> None:
    refused(world, UnknownExpertError, EXPERT, lambda: world.edge("edge").sync("nothing"))


def test_a_layout_of_another_shape_is_refused_by_the_client_itself(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round()
    synced_by(client, task)
    other = layout_of({"a": (4,)})
    refused(world, LayoutMismatchError, "shape", lambda: client.submit(task, trained(1, other)))


def test_a_client_of_another_origin_is_refused_and_keeps_its_mass(world: World) -> None:
    client = world.edge("edge")
    task = world.open_round(1)
    synced_by(client, task)
    wrong = replace(trained(1), origin=Origin(b"\x08" * 32, ORIGIN.adapter_config))
    refused(world, WrongBaseError, "trained on base", lambda: client.submit(task, wrong))
    synced_by(client, task)
    receipt = client.submit(task, trained(2))
    both = payload_of(LAYOUT, compress(LAYOUT, task_vector(2) + task_vector(1), UPLINK)).blob
    assert receipt.payload_bytes == len(both)


def test_an_aggregator_that_is_not_there_is_named(world: World) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    client = EdgeClient(Edge(address, new_key(), world.aggregator.public, world.folder / "nowhere", patience_s=0))
    with pytest.raises(UnreachableError, match=address):
        client.sync(EXPERT)


def test_a_client_that_dies_in_the_middle_of_a_round_does_not_hold_the_others_up(world: World, sender: Sender) -> None:
    task = world.open_round()
    dying = Sender(world, world.enrol("dying"))
    payload = good_payload(3)
    sealed = dsse.seal(dying.key, dsse.UPDATE, dying.manifest(task, payload))
    call = dying.stub.Submit(iter([xp.SubmitRequest(envelope=sealed), xp.SubmitRequest(data=payload[:10])]))
    next(call)
    dying.channel.close()
    sender.submit(task)
    closed = world.close_round()
    assert (closed.accepted, closed.version) == (1, 1)


def test_an_aggregator_with_another_key_is_not_believed(world: World) -> None:
    client = EdgeClient(Edge(world.address, world.enrol("edge"), new_key().public, world.folder / "state"))
    with pytest.raises(UnknownKeyError):
        client.sync(EXPERT)


def test_a_client_does_not_go_back_to_an_older_version(world: World, sender: Sender) -> None:
    sender.submit(world.open_round())
    world.close_round()
    client = world.edge("edge")
    assert client.sync(EXPERT).version == 1
    with pytest.raises(ReplayError, match="does not go back"):
        client.sync(EXPERT, 0)


def test_more_calls_than_its_share_make_a_client_wait(world: World, sender: Sender) -> None:
    task = world.open_round()
    payload = good_payload()
    sealed = dsse.seal(sender.key, dsse.UPDATE, sender.manifest(task, payload))
    held = [queue.SimpleQueue[xp.SubmitRequest | None]() for _ in range(4)]
    calls = [sender.stub.Submit(iter(box.get, None)) for box in held]
    for box, call in zip(held, calls, strict=True):
        box.put(xp.SubmitRequest(envelope=sealed))
        next(call)
    refused(world, BusyError, "its share is 4", lambda: sender.raw(xp.SubmitRequest(envelope=sealed)))
    for box, call in zip(held, calls, strict=True):
        call.cancel()
        box.put(None)


def test_every_error_of_the_tree_has_a_code_of_its_own() -> None:
    def tree(cls: type[CompeftError]) -> Iterator[type[CompeftError]]:
        yield cls
        for sub in cls.__subclasses__():
            yield from tree(sub)

    exchanged = [cls for cls in tree(CompeftError) if not cls.__module__.startswith("compeft_server")]
    assert len({cls.code for cls in exchanged}) == len(exchanged) == len(BY_CODE)


def test_a_genesis_with_a_state_that_is_not_the_seeds_is_refused(world: World) -> None:
    from tests.rounds.conftest import genesis

    lying = genesis(expert="other")
    lying.state_digest = state_digest(LAYOUT, task_vector(1))
    refused(world, WrongBaseError, "signed is", lambda: world.conductor().publish(lying))
