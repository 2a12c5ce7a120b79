"""Writes the golden vectors beside it: `python -m tests.vectors.make_vectors`. No test runs it: a changed vector is a new format.

A file is header lines `expect:` (valid or malformed), `comment:` and, if valid, `digest:` (SHA-256 of the dense float32 vector), an
empty line, and the bytes in hexadecimal. A file whose bytes would change is not touched: delete it first.
"""

import hashlib
from pathlib import Path

from compeft_core import decode, densify, parse
from tests.vectors import context, rice, rice4

FOLDER = Path(__file__).parent


def main() -> None:
    for name, (comment, blob) in (rice.valid() | context.valid() | rice4.valid()).items():
        digest = hashlib.sha256(densify(decode(parse(blob))).tobytes()).hexdigest()
        write(name, f"expect: valid\ncomment: {comment}\ndigest: {digest}", blob)
    for name, (comment, blob) in (rice.malformed() | context.malformed() | rice4.malformed()).items():
        write(name, f"expect: malformed\ncomment: {comment}", blob)


def write(name: str, header: str, blob: bytes) -> None:
    text = blob.hex()
    lines = [text[i : i + 120] for i in range(0, len(text), 120)]
    path, content = FOLDER / f"{name}.txt", "\n".join([header, "", *lines, ""])
    if path.exists() and path.read_text().partition("\n\n")[2] != content.partition("\n\n")[2]:
        raise SystemExit(f"{path.name} would change")
    path.write_text(content)


if __name__ == "__main__":
    main()
