"""The golden expert files of tests/vectors/expert_files: what each unpacks to, and that what breaks a rule is refused."""

import hashlib
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest

from compeft_client.packing.expert_file import open_expert
from compeft_client.packing.pack import check_payloads, load_compressed
from compeft_core.errors import CompeftError, LimitError
from compeft_proto.packed_manifest import dictionary
from compeft_proto.v1 import envelope_pb2
from compeft_proto.v1 import expert_pb2 as pb
from tests.vectors.make_expert_vectors import digest

FILES = sorted((Path(__file__).parents[2] / "vectors" / "expert_files").glob("*.txt"))


def read(path: Path) -> tuple[dict[str, str], bytes]:
    header, _, body = path.read_text().partition("\n\n")
    return dict(line.split(": ", 1) for line in header.splitlines()), bytes.fromhex(body)


def chosen(expect: str) -> list[Path]:
    return [path for path in FILES if read(path)[0]["expect"] == expect]


@pytest.mark.parametrize("path", chosen("valid"), ids=lambda path: path.stem)
def test_a_valid_file_unpacks_to_its_digest(path: Path, tmp_path: Path) -> None:
    header, data = read(path)
    (tmp_path / "x.expert").write_bytes(data)
    check_payloads(open_expert(tmp_path / "x.expert"))
    found = load_compressed(tmp_path / "x.expert")
    assert digest({file: dict(tensors) for file, tensors in found.tensors.items()}) == header["digest"]  # type: ignore[arg-type]


@pytest.mark.parametrize("path", chosen("valid"), ids=lambda path: path.stem)
def test_the_page_alone_leads_to_the_manifest_and_the_payloads(path: Path) -> None:
    """A second reader: struct, zlib with the preset dictionary, and protobuf."""
    data = read(path)[1]
    magic, version, length, checksum = struct.unpack_from("<4sBII", data)
    octets = data[13 : 13 + length]
    assert (magic, version, checksum) == (b"CPFX", 2, zlib.crc32(octets))
    inflater = zlib.decompressobj(-15, dictionary())
    manifest = pb.ExpertManifest.FromString(inflater.decompress(envelope_pb2.Envelope.FromString(octets).payload))
    assert inflater.eof
    at = 13 + length
    for part in manifest.parts:
        assert hashlib.sha256(data[at : at + part.payload.size]).digest() == part.payload.sha256
        at += part.payload.size
    assert at == len(data)


@pytest.mark.parametrize("path", chosen("invalid"), ids=lambda path: path.stem)
def test_a_file_that_breaks_a_rule_is_refused_by_a_typed_error(path: Path, tmp_path: Path) -> None:
    (tmp_path / "x.expert").write_bytes(read(path)[1])
    with pytest.raises(CompeftError):
        check_payloads(open_expert(tmp_path / "x.expert"))


def test_a_deflate_bomb_takes_no_more_memory_than_the_cap(tmp_path: Path) -> None:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join([*(coder.compress(bytes(2**24)) for _ in range(16)), coder.flush()])  # 256 MiB
    envelope = envelope_pb2.Envelope(payload=bomb, payload_type="application/vnd.compeft.expert.v2").SerializeToString()
    data = struct.pack("<4sBII", b"CPFX", 2, len(envelope), zlib.crc32(envelope)) + envelope
    (tmp_path / "x.expert").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(LimitError):
        open_expert(tmp_path / "x.expert")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26


def test_there_are_enough_vectors_of_both_kinds() -> None:
    assert len(chosen("valid")) >= 10
    assert len(chosen("invalid")) >= 40
