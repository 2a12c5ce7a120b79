"""What a member in good standing, or one who was, writes into its own signed messages: each is a typed refusal, and changes nothing."""

import hashlib
import math

import pytest

from compeft_core import compress
from compeft_core.errors import CompeftError, FormatError, LimitError
from compeft_proto import envelope as dsse
from compeft_proto.chunk_refs import refs_of
from compeft_proto.clock import now_ms
from compeft_proto.convert import coding_of, payload_of
from compeft_proto.errors import ExpiredError
from compeft_proto.keys import SigningKey
from compeft_proto.v1 import expert_pb2 as pb
from compeft_proto.wire_parts import MAX_PARTS, check_parts
from tests.rounds.conftest import EXPERT, LAYOUT, ORIGIN, RUN, UPLINK, World, genesis, task_vector

DAY_MS = 86_400_000
HOSTILE_NAMES = {
    "path upwards": "../../etc/passwd",
    "absolute path": "/etc/passwd",
    "backslashes": "..\\..\\windows",
    "right to left": "good\u202etxt.exe",
    "homoglyph": "sentim\u0435nt",
    "zero width": "sentiment\u200b",
    "NUL": "sentiment\0",
    "newline": "sentiment\nrefused",
    "escape": "\x1b[2Jsentiment",
    "combining": "sentime\u0301nt",
    "blank": "   ",
    "nothing": "",
    "dots": "..",
    "tilde": "~root",
    "longest": "x" * 257,
    "percent": "%2e%2e%2f",
    "quote": "a';DROP TABLE keys;--",
}


def update(world: World, key: SigningKey, **fields: object) -> tuple[pb.UpdateManifest, bytes]:
    """An honest update of the open round, but for these fields."""
    opened = world.conductor().open_round(EXPERT, RUN, 1, 60.0)
    encoded = payload_of(LAYOUT, compress(LAYOUT, task_vector(1), UPLINK))
    now = now_ms()
    made = pb.UpdateManifest(
        expert=EXPERT,
        base_version=opened.base_version,
        base_state_digest=opened.base_state_digest,
        run=RUN,
        round=1,
        round_nonce=opened.round_nonce,
        keyid=key.keyid,
        sequence=1,
        base_model_digest=ORIGIN.base_model_digest,
        layout_digest=LAYOUT.digest,
        adapter_config_digest=ORIGIN.adapter_config_digest,
        coding=coding_of(encoded, UPLINK),
        weight=300,
        issued_at_ms=now,
        expires_at_ms=now + 3_600_000,
        chunks=refs_of(encoded.blob),
    )
    for name, value in fields.items():
        if isinstance(value, list):
            made.ClearField(name)  # type: ignore[arg-type]  # a field of the message
            getattr(made, name).extend(value)
        else:
            setattr(made, name, value)
    return made, bytes(encoded.blob)


def refused(world: World, key: SigningKey, manifest: pb.UpdateManifest, blob: bytes) -> CompeftError:
    """The refusal of it; store and ledger are as they were."""
    before = world.everything()
    connection = world.edge("sender", key)._carrier
    with pytest.raises(CompeftError) as caught:
        connection.hand_in(dsse.seal(key, dsse.UPDATE, manifest), blob, b"")
    assert world.everything() == before
    assert "Traceback" not in str(caught.value)
    return caught.value


REFUSED = ("malformed", "not_finite", "limit_exceeded", "invalid_input")
WEIGHTS = [math.nan, math.inf, -math.inf, -1.0, -5e-324]


def test_weights_that_are_no_weight_are_refused(world: World) -> None:
    key = world.enrol("member")
    for weight in WEIGHTS:
        assert refused(world, key, *update(world, key, weight=weight)).code in (
            "malformed",
            "not_finite",
            "limit_exceeded",
            "invalid_input",
        )


def test_numbers_of_64_bits_are_refused_before_they_reach_a_column(world: World) -> None:
    key = world.enrol("member")
    for field in ("sequence", "round", "base_version", "num_examples", "expires_at_ms", "issued_at_ms"):
        error = refused(world, key, *update(world, key, **{field: 2**63}))
        assert isinstance(error, FormatError), field
        assert field in str(error)


def test_metrics_that_are_no_numbers_or_too_many_are_refused(world: World) -> None:
    key = world.enrol("member")
    for value in (math.nan, math.inf):
        assert isinstance(refused(world, key, *update(world, key, metrics=[pb.Metric(name="loss", value=value)])), CompeftError)
    many = [pb.Metric(name="m", value=1.0)] * 50_000
    assert refused(world, key, *update(world, key, metrics=many)).code == "limit_exceeded"


def test_a_manifest_of_a_million_empty_parts_is_refused_unparsed(world: World) -> None:
    key = world.enrol("member")
    bomb = dsse.seal_bytes(key, dsse.UPDATE.name, b"\x72\x00" * 2**20)
    with pytest.raises(LimitError, match="more than 131072 parts"):
        world.edge("sender", key)._carrier.hand_in(bomb, b"", b"")


def test_nested_parts_are_counted_and_torn_ones_are_left_to_the_parser() -> None:
    inner = b"\x2a\x00" * MAX_PARTS  # Layout.shapes
    with pytest.raises(LimitError, match="Genesis"):
        check_parts(
            b"\x22" + bytes([0x80 | len(inner) & 127, 0x80 | len(inner) >> 7 & 127, len(inner) >> 14]) + inner,
            pb.Genesis,
        )
    for torn in (b"", b"\xff", b"\x22\xff\xff", b"\x22\x7f", b"\x0b", b"\x80" * 20):
        check_parts(torn, pb.Genesis)
    check_parts(genesis().SerializeToString(), pb.Genesis)


def test_a_hostile_name_makes_no_expert_and_no_file(world: World) -> None:
    before, conductor = sorted(path.name for path in world.folder.rglob("*")), world.conductor()
    for name in HOSTILE_NAMES.values():
        made = genesis()
        made.expert = name
        with pytest.raises(CompeftError) as caught:
            conductor.publish(made)
        assert caught.value.code in ("malformed", "invalid_input", "limit_exceeded"), name
        assert str(caught.value).isprintable()
        assert world.ledger.experts() == [EXPERT]
    assert sorted(path.name for path in world.folder.rglob("*")) == before


def test_a_client_keeps_no_folder_under_a_hostile_name(world: World) -> None:
    client = world.edge("reader")
    for name in HOSTILE_NAMES.values():
        with pytest.raises(CompeftError):
            client.sync(name)
    assert not [path for path in (world.folder / "state-reader").glob("*") if path.is_dir()]


def test_a_configuration_nested_a_hundred_thousand_deep_is_refused(world: World) -> None:
    made = genesis(expert="deep")
    made.adapter_config = b"[" * 100_000 + b"]" * 100_000
    made.adapter_config_digest = hashlib.sha256(made.adapter_config).digest()
    with pytest.raises(CompeftError) as caught:
        world.conductor().publish(made)
    assert caught.value.code in ("malformed", "invalid_input")


@pytest.mark.parametrize("offset_ms", [DAY_MS, -DAY_MS], ids=["ahead", "behind"])
def test_a_client_whose_clock_is_a_day_off_is_told_so(world: World, offset_ms: int) -> None:
    client = world.edge("member")
    world.offset_ms[0] = offset_ms
    with pytest.raises(ExpiredError, match="clock"):
        client.sync(EXPERT)
    world.offset_ms[0] = 0
    assert client.sync(EXPERT).version == 0


def test_a_sealed_message_of_one_kind_does_not_pass_for_another(world: World) -> None:
    key = world.enrol("member")
    manifest, blob = update(world, key)
    for kind in (dsse.GENESIS, dsse.PACKAGE, dsse.SYNC_REQUEST, dsse.ROUND_CLOSING, dsse.RECEIPT):
        sealed = dsse.seal_bytes(key, kind.name, manifest.SerializeToString())
        with pytest.raises(CompeftError):
            world.edge("sender", key)._carrier.hand_in(sealed, blob, b"")


def test_a_member_that_names_another_key_is_refused(world: World) -> None:
    key, other = world.enrol("member"), world.enrol("other")
    assert refused(world, key, *update(world, key, keyid=other.keyid)).code in ("forbidden", "unknown_key", "untrusted")
