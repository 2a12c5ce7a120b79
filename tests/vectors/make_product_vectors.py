"""Writes the golden vectors of product-space encodings: `python -m tests.vectors.make_product_vectors`. No test runs it.

A file is header lines `expect:` (valid or malformed), `comment:`, `shapes:` (ROWSxCOLUMNS of each module) and, if valid, `digest:`
(SHA-256 of all factors as float32, left before right, module by module), an empty line, and the bytes in hexadecimal. A file whose
bytes would change is not touched: delete it first.
"""

import hashlib
from pathlib import Path

from compeft_core.product import decode_product
from tests.vectors import product
from tests.vectors.make_vectors import write

FOLDER = Path(__file__).parent / "product_space"


def digest_of(blob: bytes, shapes: list[tuple[int, int]]) -> str:
    """Of what is decoded."""
    return hashlib.sha256(b"".join(f.tobytes() for pair in decode_product(blob, shapes) for f in pair)).hexdigest()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (comment, shapes, blob) in product.valid().items():
        lines = f"expect: valid\ncomment: {comment}\nshapes: {shapes_text(shapes)}\ndigest: {digest_of(blob, shapes)}"
        write(f"{FOLDER.name}/{name}", lines, blob)
    for name, (comment, shapes, blob) in product.malformed().items():
        write(f"{FOLDER.name}/{name}", f"expect: malformed\ncomment: {comment}\nshapes: {shapes_text(shapes)}", blob)


def shapes_text(shapes: list[tuple[int, int]]) -> str:
    return " ".join(f"{m}x{n}" for m, n in shapes)


if __name__ == "__main__":
    main()
