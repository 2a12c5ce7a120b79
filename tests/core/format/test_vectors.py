"""The golden files of tests/vectors: the bytes of format version 1, decoded and, if valid, encoded again."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from compeft_core import FormatError, Ternary, Update, add_to, densify, encode, parse
from tests.core.format import reference_decoder

FILES = sorted((Path(__file__).parents[2] / "vectors").glob("*.txt"))


def read(path: Path) -> tuple[dict[str, str], bytes]:
    header, _, body = path.read_text().partition("\n\n")
    return dict(line.split(": ", 1) for line in header.splitlines()), bytes.fromhex(body)


def chosen(expect: str) -> list[Path]:
    return [path for path in FILES if read(path)[0]["expect"] == expect]


@pytest.mark.parametrize("path", chosen("valid"), ids=lambda path: path.stem)
def test_a_valid_vector_is_decoded_to_its_digest(path: Path) -> None:
    header, blob = read(path)
    encoded = parse(blob)
    state = np.zeros(encoded.size, np.float32)
    add_to(encoded, state)
    assert hashlib.sha256(state.tobytes()).hexdigest() == header["digest"]


@pytest.mark.parametrize("path", chosen("valid"), ids=lambda path: path.stem)
def test_what_the_reference_decoder_reads_is_encoded_to_the_same_bytes(path: Path) -> None:
    header, blob = read(path)
    read_by_hand = reference_decoder.decode(blob)
    ternary = Ternary(
        read_by_hand.ternary_size,
        np.array(list(read_by_hand.entries), np.uint32),
        np.array([value < 0 for value in read_by_hand.entries.values()], np.bool_),
        np.array(read_by_hand.group_ends, np.int64),
        np.array(read_by_hand.scales, np.float32),
    )
    update = Update(ternary, np.array(read_by_hand.dense, np.float32))
    assert encode(update, codec=read_by_hand.codec, shapes=read_by_hand.shapes) == blob
    assert hashlib.sha256(densify(update).tobytes()).hexdigest() == header["digest"]


@pytest.mark.parametrize("path", chosen("malformed"), ids=lambda path: path.stem)
def test_a_malformed_vector_is_refused_by_both_decoders(path: Path) -> None:
    _, blob = read(path)
    with pytest.raises(FormatError):
        parse(blob)
    with pytest.raises(reference_decoder.Malformed):
        reference_decoder.decode(blob)


def test_there_are_vectors_of_both_kinds_for_every_codec() -> None:
    for expect in ("valid", "malformed"):
        names = [path.stem for path in chosen(expect)]
        by_context = [name for name in names if name.startswith("context_")]
        assert len(by_context) >= 12
        by_rice4 = [name for name in names if name.startswith("rice4_")]
        assert len(by_rice4) >= 12
        assert len(names) - len(by_context) - len(by_rice4) >= 20


def test_every_file_holds_one_scenario_and_no_two_hold_the_same_bytes() -> None:
    assert len(FILES) >= 60
    assert len({read(path)[1] for path in FILES}) == len(FILES)
    assert all(len(read(path)[0]["comment"]) > 5 for path in FILES)
