"""The container on any bytes: an expert that its manifest describes to the byte, or a typed error; signed means signed."""

import hashlib
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compeft_client.packing.expert_file import open_expert
from compeft_client.packing.pack import PackSettings, check_payloads, load_compressed, save_compressed, unpack
from compeft_core.errors import CompeftError, FormatError, InputError, LayoutMismatchError, LimitError
from compeft_proto import envelope as dsse
from compeft_proto import packed_manifest
from compeft_proto.errors import PayloadTypeError, SignatureError, UnknownKeyError
from compeft_proto.expert_file import HEAD_FORMAT, MAGIC
from compeft_proto.front_coding import FrontCoded
from compeft_proto.keys import SigningKey, new_key
from compeft_proto.v1.envelope_pb2 import Envelope
from compeft_proto.v1.expert_pb2 import ChunkRef, ExpertManifest, FileMetadata, MetadataEntry, Shape


def split(data: bytes) -> tuple[Envelope, bytes]:
    length = HEAD_FORMAT.unpack_from(data)[2]
    end = HEAD_FORMAT.size + length
    return Envelope.FromString(data[HEAD_FORMAT.size : end]), data[end:]


def join(envelope: Envelope | bytes, payloads: bytes, version: int = 2) -> bytes:
    octets = envelope if isinstance(envelope, bytes) else envelope.SerializeToString()
    return HEAD_FORMAT.pack(MAGIC, version, len(octets), zlib.crc32(octets)) + octets + payloads


@pytest.fixture
def signed(adapter: Path, tmp_path: Path, key: SigningKey) -> Path:
    save_compressed(adapter, tmp_path / "a.expert", PackSettings(0.05, codec="rice", key=key))
    return tmp_path / "a.expert"


def altered(file: Path, change: object) -> Path:
    """The file with its manifest changed, unsigned and otherwise consistent."""
    envelope, payloads = split(file.read_bytes())
    manifest = ExpertManifest.FromString(packed_manifest.unpack(envelope.payload))
    change(manifest)  # type: ignore[operator]
    packed = packed_manifest.pack(manifest.SerializeToString(deterministic=True))
    file.write_bytes(join(Envelope(payload=packed, payload_type=packed_manifest.TYPE), payloads))
    return file


def test_a_signed_file_opens_with_the_signers_key_only(signed: Path, key: SigningKey) -> None:
    opened = open_expert(signed, key.public)
    check_payloads(opened)
    assert opened.verified
    assert list(opened.keyids) == [key.keyid]
    with pytest.raises(UnknownKeyError, match=f"not signed by .*, but by '{key.keyid}'"):
        open_expert(signed, new_key().public)


def test_an_unsigned_file_opens_without_a_key_only(adapter: Path, tmp_path: Path, key: SigningKey) -> None:
    save_compressed(adapter, tmp_path / "a.expert")
    assert not open_expert(tmp_path / "a.expert").verified
    with pytest.raises(UnknownKeyError, match="by nobody"):
        unpack(tmp_path / "a.expert", tmp_path / "back", key=key.public)
    assert not (tmp_path / "back").exists()


def test_a_changed_manifest_does_not_verify_even_with_a_fitting_checksum(signed: Path, key: SigningKey) -> None:
    envelope, payloads = split(signed.read_bytes())
    envelope.payload = packed_manifest.pack(packed_manifest.unpack(envelope.payload).replace(b"org/base", b"org/evil"))
    signed.write_bytes(join(envelope, payloads))
    assert open_expert(signed).manifest.base_model == "org/evil"
    with pytest.raises(SignatureError):
        open_expert(signed, key.public)


def test_a_payload_that_the_manifest_does_not_name_is_refused(signed: Path, tmp_path: Path) -> None:
    data = bytearray(signed.read_bytes())
    data[-1] ^= 1
    signed.write_bytes(data)
    with pytest.raises(FormatError, match="damaged"):
        unpack(signed, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_sealed_message_of_another_kind_is_no_expert(signed: Path, key: SigningKey) -> None:
    signed.write_bytes(join(dsse.seal(key, dsse.RECEIPT, dsse.RECEIPT.message()), b""))
    for trusted in (None, key.public):
        with pytest.raises(PayloadTypeError):
            open_expert(signed, trusted)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_no_flipped_bit_passes(signed: Path, data: st.DataObject) -> None:
    octets = signed.read_bytes()
    changed = bytearray(octets)
    bit = data.draw(st.integers(0, 8 * len(octets) - 1))
    changed[bit // 8] ^= 1 << bit % 8
    other = signed.with_name("flipped")
    other.write_bytes(changed)
    with pytest.raises((FormatError, LimitError)):
        check_payloads(open_expert(other))


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_shorter_or_longer_file_is_refused(signed: Path, data: st.DataObject) -> None:
    octets = signed.read_bytes()
    other = signed.with_name("cut")
    other.write_bytes(octets[: data.draw(st.integers(0, len(octets) - 1))])
    with pytest.raises(FormatError):
        open_expert(other)
    other.write_bytes(octets + data.draw(st.binary(min_size=1, max_size=9)))
    with pytest.raises(FormatError):
        open_expert(other)


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_manifest_of_any_bytes_is_refused_by_a_typed_error(tmp_path: Path, junk: bytes) -> None:
    file = tmp_path / "junk"
    old = Envelope(payload=junk, payload_type=dsse.EXPERT.name)
    new = Envelope(payload=junk, payload_type=packed_manifest.TYPE)
    deflated = Envelope(payload=packed_manifest.pack(junk), payload_type=packed_manifest.TYPE)
    for octets, version in ((junk, 1), (old, 1), (old, 2), (new, 1), (new, 2), (deflated, 2)):
        file.write_bytes(join(octets, b"", version))
        with pytest.raises(CompeftError):
            open_expert(file)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_a_manifest_changed_anywhere_loads_or_is_refused_by_a_typed_error(signed: Path, data: st.DataObject) -> None:
    envelope, payloads = split(signed.read_bytes())
    manifest = bytearray(packed_manifest.unpack(envelope.payload))
    manifest[data.draw(st.integers(0, len(manifest) - 1))] = data.draw(st.integers(0, 255))
    other = signed.with_name("changed")
    packed = packed_manifest.pack(bytes(manifest))
    other.write_bytes(join(Envelope(payload=packed, payload_type=packed_manifest.TYPE), payloads))
    try:
        load_compressed(other, max_parameters=10_000)
    except CompeftError:
        return


def test_a_huge_claim_is_refused_before_it_is_believed(signed: Path) -> None:
    signed.write_bytes(struct.pack("<4sBII", MAGIC, 1, 2**32 - 1, 0))
    with pytest.raises(LimitError, match="4294967295"):
        open_expert(signed)
    signed.write_bytes(struct.pack("<4sBII", MAGIC, 1, 2**24, 0))
    with pytest.raises(FormatError, match="claims 16777216"):
        open_expert(signed)


def test_another_version_says_so(signed: Path) -> None:
    signed.write_bytes(join(*split(signed.read_bytes()), version=3))
    with pytest.raises(FormatError, match="version 3"):
        open_expert(signed)


def test_too_many_signatures_are_refused_without_a_key_too(signed: Path) -> None:
    envelope, payloads = split(signed.read_bytes())
    envelope.signatures.extend([envelope.signatures[0]] * dsse.MAX_SIGNATURES)
    signed.write_bytes(join(envelope, payloads))
    with pytest.raises(LimitError, match="9 signatures"):
        open_expert(signed)


def test_a_name_with_dots_and_slashes_stays_a_name(signed: Path, tmp_path: Path) -> None:
    evil = "../../../etc/passwd"
    rows = [FrontCoded(0, 0, evil.encode())]

    def rename(manifest: ExpertManifest) -> None:
        layout = manifest.parts[0].layout
        first = len(layout.middle)
        del layout.shared_prefix[:], layout.shared_suffix[:], layout.middle[:], layout.shape[1:]
        layout.ternary = 1
        layout.shared_prefix.append(0)
        layout.shared_suffix.append(0)
        layout.middle.append(rows[0].middle)
        layout.shapes[0].sizes[:] = [256 * first]

    opened = altered(signed, rename)
    unpack(opened, tmp_path / "back")
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert evil in load_compressed(opened).tensors["adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda m: m.parts.clear(), FormatError, "0 parts"),
        (lambda m: m.parts.extend([m.parts[0]] * 300), FormatError, "302 parts"),
        (lambda m: m.parts.append(m.parts[0]), FormatError, "twice"),
        (lambda m: setattr(m.parts[0], "file", 3), FormatError, "at once"),
        (lambda m: setattr(m.parts[0], "file", 0), FormatError, "file number 0"),
        (lambda m: setattr(m.parts[0], "file", 99), FormatError, "file number 99"),
        (lambda m: setattr(m, "config", bytes(2**20 + 1)), LimitError, "configuration"),
        (lambda m: setattr(m, "tool", "x\x1b[2J"), FormatError, "printable"),
        (lambda m: setattr(m, "base_model", "x" * 1025), FormatError, "1025"),
        (lambda m: m.parts[0].payload.CopyFrom(ChunkRef(sha256=b"x", size=1)), FormatError, "1 bytes"),
        (lambda m: setattr(m.parts[0].payload, "size", 2**40), LimitError, "1099511627776"),
        (lambda m: setattr(m.parts[0].payload, "size", m.parts[0].payload.size + 1), FormatError, "its manifest makes"),
        (lambda m: m.parts[0].ClearField("coding"), FormatError, "uncoded"),
        (lambda m: m.parts[0].dtypes.extend([2, 2]), FormatError, "3 types"),
        (lambda m: m.parts[0].dtypes.__setitem__(0, 0), FormatError, "type 0"),
        (lambda m: m.parts[0].dtypes.__setitem__(0, 77), FormatError, "type 77"),
        (lambda m: m.parts[0].dtypes.__setitem__(0, 5), FormatError, "not a float"),
        (lambda m: m.parts[0].layout.shapes.append(Shape(sizes=[1])), FormatError, "shapes"),
        (lambda m: m.metadata.append(FileMetadata(file=2)), FormatError, "metadata"),
        (lambda m: m.metadata.append(FileMetadata(file=1)), FormatError, "metadata"),
        (lambda m: m.metadata[0].entries.append(MetadataEntry(key="format", value="x")), FormatError, "twice"),
        (lambda m: setattr(m.parts[0], "initial_digest", b"short"), FormatError, "initial state digest"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(signed: Path, change: object, error: type[CompeftError], words: str) -> None:
    with pytest.raises(error, match=words):
        open_expert(altered(signed, change))


@pytest.mark.parametrize(
    "change",
    [
        lambda part: part.coding.scales.__setitem__(0, 9.0),
        lambda part: setattr(part.coding, "kept", 1),
        lambda part: setattr(part.coding, "codec", "zip"),
        lambda part: part.layout.shapes[0].sizes.__setitem__(0, 63),
    ],
)
def test_a_manifest_that_contradicts_its_payload_is_refused(signed: Path, change: object) -> None:
    opened = open_expert(altered(signed, lambda manifest: change(manifest.parts[0])))  # type: ignore[operator]
    with pytest.raises((FormatError, LayoutMismatchError, LimitError)):
        check_payloads(opened)


def test_a_payload_of_another_expert_does_not_pass_for_this_ones(signed: Path) -> None:
    def swap(manifest: ExpertManifest) -> None:
        manifest.parts[0].payload.sha256 = hashlib.sha256(b"").digest()

    with pytest.raises(FormatError, match="payload 0"):
        check_payloads(open_expert(altered(signed, swap)))


def test_a_file_that_is_not_there_or_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        open_expert(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(FormatError, match="not an expert file"):
        open_expert(tmp_path / "text")
