"""The golden vectors of product-space encodings: what is valid decodes to its digest by both decoders, what is malformed by none."""

import hashlib
from pathlib import Path

import pytest

from compeft_core.errors import FormatError
from compeft_core.product import check_product, parse_product, write_product
from tests.core.product import reference_decoder as reference
from tests.vectors import product
from tests.vectors.make_product_vectors import FOLDER, digest_of

FILES = sorted(FOLDER.glob("*.txt"))


def read(path: Path) -> tuple[dict[str, str], list[tuple[int, int]], bytes]:
    header, _, body = path.read_text().partition("\n\n")
    fields = dict(line.split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in header.splitlines())
    shapes = [(int(m), int(n)) for m, n in (pair.split("x") for pair in fields["shapes"].split())]
    return fields, shapes, bytes.fromhex("".join(body.split()))


def test_there_is_a_file_for_each_vector_and_nothing_else() -> None:
    made = product.valid() | product.malformed()
    assert {path.stem for path in FILES} == set(made)
    assert len(FILES) >= 40
    for path in FILES:
        assert read(path)[1:] == made[path.stem][1:], path.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_vector_is_what_it_says(path: Path) -> None:
    fields, shapes, blob = read(path)
    if fields["expect"] == "valid":
        assert digest_of(blob, shapes) == fields["digest"]
        assert write_product(parse_product(blob, shapes)) == blob
        modules = reference.decode(blob, shapes)
        factors = [b"".join(rows) for m, s in zip(modules, shapes, strict=True) for rows in reordered(m, s)]
        assert hashlib.sha256(b"".join(factors)).hexdigest() == fields["digest"]
    else:
        with pytest.raises(FormatError):
            check_product(blob, shapes)
        with pytest.raises(reference.Malformed):
            reference.decode(blob, shapes)


def reordered(module: list[reference.Component], shape: tuple[int, int]) -> tuple[list[bytes], list[bytes]]:
    """The left factor row by row, as it lies in memory, and the right one."""
    columns, rows = reference.factors(module, shape)
    return [b"".join(c[4 * i : 4 * i + 4] for c in columns) for i in range(shape[0])], rows
