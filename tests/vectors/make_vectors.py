"""Writes the golden vectors beside it: `python -m tests.vectors.make_vectors`. No test runs it: a changed vector is a new format.

A file is header lines `expect:` (valid or malformed), `comment:` and, if valid, `digest:` (SHA-256 of the dense float32 vector), an
empty line, and the bytes in hexadecimal.
"""

import hashlib
from pathlib import Path

import numpy as np

from compeft_core import Compression, Update, compress, decode, densify, encode, layout_of, parse

FOLDER = Path(__file__).parent


def main() -> None:
    for name, (comment, update) in valid().items():
        blob = encode(update)
        digest = hashlib.sha256(densify(decode(parse(blob))).tobytes()).hexdigest()
        write(name, f"expect: valid\ncomment: {comment}\ndigest: {digest}", blob)
    for name, (comment, blob) in malformed().items():
        write(name, f"expect: malformed\ncomment: {comment}", blob)


def write(name: str, header: str, blob: bytes) -> None:
    text = blob.hex()
    lines = [text[i : i + 120] for i in range(0, len(text), 120)]
    (FOLDER / f"{name}.txt").write_text("\n".join([header, "", *lines, ""]))


def flat(values: list[float], dense: int = 0, **settings: object) -> Update:
    vector = np.array(values, np.float32)
    layout = layout_of({"a": (len(values) - dense,), "h": (dense,)}, dense=["h"])
    return compress(layout, vector, Compression(**settings))


def noise(size: int, seed: int) -> list[float]:
    """Sums of bytes: the same on every machine and with every numpy."""
    octets = np.frombuffer(hashlib.shake_256(bytes([seed])).digest(4 * size), np.uint8).reshape(size, 4)
    return (octets.sum(axis=1, dtype=np.float64) - 510).tolist()


def valid() -> dict[str, tuple[str, Update]]:
    layout = layout_of({"a": (40,), "b": (60,), "c": (30,)})
    groups = np.array(noise(130, 3), np.float32)
    groups[40:100] /= 4096
    return {
        "empty": ("no parameters at all", flat([])),
        "zeros": ("ten entries, none kept: scale 0", flat([0.0] * 10)),
        "by_hand": ("1 -1 0 0 0 1 0 0, worked out in docs/format.md", flat([1, -1, 0, 0, 0, 1, 0, 0], density=1.0)),
        "dense_only": ("three bfloat16 values", flat([1.0, -2.5, 3e-39], dense=3)),
        "all_kept": ("every entry kept: signs only", flat(noise(9, 1), density=1.0)),
        "complement": ("more than half kept: the gaps list the others", flat(noise(40, 2), density=0.8)),
        "five_percent": ("two blocks, the last of 464 positions, 5 % kept, a dense part", flat(noise(66_008, 4), dense=8)),
        "far_entry": (
            "a gap of 60,000 after 40 neighbours: a long run of zeros",
            flat([1.0] * 40 + [0.0] * 60_000 + [1.0], density=1),
        ),
        "groups": ("one scale for each of three tensors", compress(layout, groups, Compression(0.2, granularity="tensor"))),
        "empty_group": (
            "the second group keeps nothing: its scale is 0",
            compress(layout, groups, Compression(0.1, granularity="tensor")),
        ),
    }


def malformed() -> dict[str, tuple[str, bytes]]:
    """Each breaks one rule of docs/format.md; most start from `by_hand`."""
    good = encode(flat([1, -1, 0, 0, 0, 1, 0, 0], density=1.0))
    dense = encode(flat([1.0], dense=1))
    assert len(good) == 17
    return {
        "bad_magic": ("magic is not CPFT", b"X" + good[1:]),
        "bad_version": ("version 2", good[:4] + b"\x02" + good[5:]),
        "bad_codec": ("codec 2, reserved", good[:5] + b"\x02" + good[6:]),
        "long_varint": ("ternary_size 8 in two bytes", good[:6] + b"\x88\x00" + good[7:]),
        "no_group": ("eight parameters in no scale group", good[:8] + b"\x00" + good[13:]),
        "group_sizes": ("two groups of 4 and 5 in a ternary part of 8", good[:8] + b"\x02\x04\x05" + good[9:13] + good[9:]),
        "zero_scale": ("scale 0 though entries are kept", good[:9] + bytes(4) + good[13:]),
        "negative_scale": ("scale -1", good[:9] + b"\x00\x00\x80\xbf" + good[13:]),
        "subnormal_scale": ("scale below 2^-126", good[:9] + b"\x01\x00\x00\x00" + good[13:]),
        "infinite_scale": ("scale is infinite", good[:9] + b"\x00\x00\x80\x7f" + good[13:]),
        "too_many_kept": ("nine kept of eight", good[:13] + b"\x09" + good[14:]),
        "padding": ("a padding bit is 1", good[:-1] + bytes([good[-1] | 0x80])),
        "extra_byte_in_stream": ("a stream one byte longer than its codes", good[:14] + b"\x01" + good[15:] + b"\x00"),
        "place_beyond": ("the last gap is 6 and leads to place 8 of 8", good[:-1] + b"\x04"),
        "truncated": ("the last byte is missing", good[:-1]),
        "trailing": ("a byte follows", good + b"\x00"),
        "dense_nan": ("a dense value is NaN", dense[:-2] + b"\xc0\x7f"),
        "dense_negative_zero": ("a dense value is -0.0", dense[:-2] + b"\x00\x80"),
    }


if __name__ == "__main__":
    main()
