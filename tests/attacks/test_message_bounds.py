"""Every message from outside is bounded in length, in each of its words and numbers, before anything looks at what it says."""

import pytest

from compeft_core import layout_of
from compeft_core.errors import CompeftError, FormatError, LimitError
from compeft_proto import envelope as dsse
from compeft_proto.convert import layout_to_proto
from compeft_proto.errors import UnknownKeyError
from compeft_proto.keys import new_key
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.v1.envelope_pb2 import Envelope, Signature
from compeft_server.domain.admission import admit_genesis
from compeft_server.domain.limits import Limits
from tests.rounds.conftest import EXPERT, RUN, World, genesis

KEY = new_key()
KINDS = [kind for kind in vars(dsse).values() if isinstance(kind, dsse.PayloadType) and kind.bounded]


def opened(kind: dsse.PayloadType, message: object) -> object:
    return dsse.open_envelope(dsse.seal(KEY, kind, message), dsse.only(KEY.public), kind)  # type: ignore[arg-type, type-var]


def fields(kind: dsse.PayloadType, type_: int) -> list[str]:
    return [f.name for f in kind.message.DESCRIPTOR.fields if f.type == type_ and not f.is_repeated]


@pytest.mark.parametrize("text", ["x" * 257, "nul\0", "a\x1b[31m", "line\nbreak", "\u202eright to left"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.message.__name__)
def test_no_word_of_any_message_is_long_or_has_control_characters(kind: dsse.PayloadType, text: str) -> None:
    for name in fields(kind, 9):
        with pytest.raises(
            FormatError, match=rf"{kind.message.__name__}\.{name} (has 257 characters|is '.*', expected printable)"
        ):
            opened(kind, kind.message(**{name: text}))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.message.__name__)
def test_no_number_of_any_message_is_above_63_bits(kind: dsse.PayloadType) -> None:
    for name in fields(kind, 4):
        opened(kind, kind.message(**{name: 2**63 - 1}))
        with pytest.raises(FormatError, match=rf"\.{name} is 9223372036854775808, expected numbers up to"):
            opened(kind, kind.message(**{name: 2**63}))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.message.__name__)
def test_no_byte_string_of_any_message_is_long(kind: dsse.PayloadType) -> None:
    for name in fields(kind, 12):
        with pytest.raises(CompeftError):
            opened(kind, kind.message(**{name: bytes(2**20 + 1)}))


def test_what_is_nested_is_bounded_too() -> None:
    update = pb.UpdateManifest(metrics=[pb.Metric(name="x" * 1000)])
    with pytest.raises(FormatError, match=r"Metric\.name has 1000 characters"):
        opened(dsse.UPDATE, update)
    with pytest.raises(FormatError, match=r"ChunkRef\.size is"):
        opened(dsse.UPDATE, pb.UpdateManifest(chunks=[pb.ChunkRef(sha256=bytes(32), size=2**63)]))


def test_fields_that_nobody_knows_do_not_make_a_message_long() -> None:
    unknown = b"\xfa\x3f" + b"\x80\x80\x40" + bytes(2**20)  # field 1023, 1 MiB
    sealed = dsse.seal(KEY, dsse.SYNC_REQUEST, pb.SyncRequest.FromString(unknown))
    with pytest.raises(LimitError, match=r"sealed .*sync-request.* of 104858\d bytes, the cap is 16384"):
        dsse.open_envelope(sealed, dsse.only(KEY.public), dsse.SYNC_REQUEST)


@pytest.mark.parametrize("keyid", ["x" * 2**20, "nul\0", "", "' or 1=1"])
def test_a_keyid_that_can_be_nobodys_is_not_looked_up(keyid: str) -> None:
    asked: list[str] = []
    with pytest.raises(UnknownKeyError):
        dsse.verify(Envelope(payload=b"x", payload_type="t", signatures=[Signature(keyid=keyid)]), asked.append)  # type: ignore[arg-type]
    assert asked == []


def test_a_genesis_above_the_cap_of_parameters_is_refused_before_it_is_computed() -> None:
    made = genesis(layout_of({"a.lora_A": (10, 10)}))
    made.layout.CopyFrom(layout_to_proto(layout_of({"a.lora_A": (1000, 2_000_000)})))
    with pytest.raises(LimitError, match="has 2000000000 parameters, the cap is 1000000000"):
        admit_genesis(made, Limits(max_parameters=10**9))
    made.layout.CopyFrom(layout_to_proto(layout_of({"a.lora_A": (10, 10)})))
    made.snapshot.chunks.add(sha256=bytes(32), size=400_000)
    with pytest.raises(FormatError, match="has a snapshot of 400000 bytes, its layout needs 400"):
        admit_genesis(made, Limits())


def test_a_sync_that_names_a_round_of_64_bits_moves_nothing(world: World) -> None:
    with pytest.raises(FormatError, match=r"SyncRequest\.round is 9223372036854775808"):
        world.edge("edge").sync(EXPERT, None, RUN, 2**63)
    assert [t for t in world.ledger.transfers(EXPERT) if t.direction == "down"] == []
