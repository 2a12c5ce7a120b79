"""Scenarios of the golden vectors by `rice`: name -> (comment, bytes)."""

import hashlib

import numpy as np

from compeft_core import Compression, Ternary, Update, compress, encode, layout_of

Scenarios = dict[str, tuple[str, bytes]]


def flat(values: list[float], dense: int = 0, **settings: object) -> Update:
    vector = np.array(values, np.float32)
    layout = layout_of({"a": (len(values) - dense,), "h": (dense,)}, dense=["h"])
    return compress(layout, vector, Compression(**({"scale": "norm"} | settings)))


def noise(size: int, seed: int) -> list[float]:
    """Sums of bytes: the same on every machine and with every numpy."""
    octets = np.frombuffer(hashlib.shake_256(bytes([seed])).digest(4 * size), np.uint8).reshape(size, 4)
    return (octets.sum(axis=1, dtype=np.float64) - 510).tolist()


def sparse(size: int, positions: list[int], scale: float = 1.0) -> Update:
    """An update that keeps these positions, every other one negative."""
    kept = np.array(positions, np.uint32)
    negative = np.arange(kept.size) % 2 == 1
    ends, scales = np.array([size], np.int64), np.array([scale if positions else 0], np.float32)
    return Update(Ternary(size, kept, negative, ends, scales), np.empty(0, np.float32))


def valid() -> Scenarios:
    layout = layout_of({"a": (40,), "b": (60,), "c": (30,)})
    groups = np.array(noise(130, 3), np.float32)
    groups[40:100] /= 4096
    largest = float(np.finfo(np.float32).max)
    updates = {
        "empty": ("no parameters at all", flat([])),
        "zeros": ("ten entries, none kept: scale 0", flat([0.0] * 10)),
        "by_hand": ("1 -1 0 0 0 1 0 0, worked out in docs/format.md", flat([1, -1, 0, 0, 0, 1, 0, 0], density=1.0)),
        "dense_only": ("three bfloat16 values", flat([1.0, -2.5, 3e-39], dense=3)),
        "dense_extremes": ("the largest, the smallest and zero of bfloat16", flat([3.3895314e38, -9.2e-41, 0.0], dense=3)),
        "all_kept": ("every entry kept: signs only", flat(noise(9, 1), density=1.0)),
        "complement": ("more than half kept: the gaps list the others", flat(noise(40, 2), density=0.8)),
        "exactly_half": ("half kept: the gaps still list what is kept", flat(noise(40, 5), density=0.5)),
        "just_over_half": ("21 of 40 kept: the gaps list the 19 others", flat(noise(40, 5), density=0.525)),
        "five_percent": ("two blocks, the last of 464 positions, 5 % kept, a dense part", flat(noise(66_008, 4), dense=8)),
        "one_percent": ("Golomb parameter 69", flat(noise(20_000, 6), density=0.01)),
        "ten_percent": ("Golomb parameter 7", flat(noise(2_000, 7), density=0.1)),
        "twenty_percent": ("Golomb parameter 3", flat(noise(1_000, 8), density=0.2)),
        "thirty_percent": ("Golomb parameter 2, a power of two", flat(noise(1_000, 9), density=0.3)),
        "one_position": ("a single entry, kept", flat([-4.0], density=1.0)),
        "last_position": ("one entry kept, the last of 1,000", sparse(1000, [999])),
        "block_edges": ("the last place of a block and the first of the next", sparse(131_073, [0, 65_535, 65_536, 131_072])),
        "empty_block": ("three blocks, the middle one keeps nothing", sparse(140_000, [5, 70, 131_080, 139_999])),
        "smallest_scale": ("scale 2^-126", sparse(20, [3, 4], 2.0**-126)),
        "largest_scale": ("the largest finite float32 as scale", sparse(20, [3, 4], largest)),
        "far_entry": (
            "a gap of 60,000 after 40 neighbours: a long run of zeros",
            flat([1.0] * 40 + [0.0] * 60_000 + [1.0], density=1),
        ),
        "groups": (
            "one scale for each of three tensors",
            compress(layout, groups, Compression(0.2, "norm", granularity="tensor")),
        ),
        "empty_group": (
            "the second group keeps nothing: its scale is 0",
            compress(layout, groups, Compression(0.1, "norm", granularity="tensor")),
        ),
    }
    return {name: (comment, encode(update)) for name, (comment, update) in updates.items()}


def malformed() -> Scenarios:
    """Each breaks one rule of docs/format.md; most start from `by_hand`."""
    good = encode(flat([1, -1, 0, 0, 0, 1, 0, 0], density=1.0))
    dense = encode(flat([1.0], dense=1))
    nothing = encode(flat([0.0] * 10))
    assert len(good) == 17
    return {
        "bad_magic": ("magic is not CPFT", b"X" + good[1:]),
        "bad_version": ("version 2", good[:4] + b"\x02" + good[5:]),
        "bad_codec": ("codec 3", good[:5] + b"\x03" + good[6:]),
        "codec_zero": ("codec 0", good[:5] + b"\x00" + good[6:]),
        "no_bytes": ("no bytes", b""),
        "head_only": ("nothing after the codec", good[:6]),
        "long_varint": ("ternary_size 8 in two bytes", good[:6] + b"\x88\x00" + good[7:]),
        "six_byte_varint": ("ternary_size in six bytes", good[:6] + b"\x88\x80\x80\x80\x80\x00" + good[7:]),
        "varint_too_large": ("ternary_size 2^32", good[:6] + b"\x80\x80\x80\x80\x10" + good[7:]),
        "no_group": ("eight parameters in no scale group", good[:8] + b"\x00" + good[13:]),
        "group_of_nothing": ("a scale group without parameters", good[:6] + b"\x00\x00\x01" + bytes(4)),
        "group_sizes": ("two groups of 4 and 5 in a ternary part of 8", good[:8] + b"\x02\x04\x05" + good[9:13] + good[9:]),
        "group_size_zero": ("two groups of 8 and 0", good[:8] + b"\x02\x08\x00" + good[9:13] + bytes(4) + good[13:]),
        "too_many_groups": ("65,537 groups", good[:8] + b"\x81\x80\x04" + good[9:]),
        "zero_scale": ("scale 0 though entries are kept", good[:9] + bytes(4) + good[13:]),
        "negative_scale": ("scale -1", good[:9] + b"\x00\x00\x80\xbf" + good[13:]),
        "subnormal_scale": ("scale below 2^-126", good[:9] + b"\x01\x00\x00\x00" + good[13:]),
        "infinite_scale": ("scale is infinite", good[:9] + b"\x00\x00\x80\x7f" + good[13:]),
        "nan_scale": ("scale is NaN", good[:9] + b"\x00\x00\xc0\x7f" + good[13:]),
        "scale_of_nothing": ("scale 1 though nothing is kept", nothing[:9] + b"\x00\x00\x80\x3f" + nothing[13:]),
        "negative_zero_scale": ("scale -0.0, nothing kept", nothing[:9] + b"\x00\x00\x00\x80" + nothing[13:]),
        "too_many_kept": ("nine kept of eight", good[:13] + b"\x09" + good[14:]),
        "padding": ("a padding bit is 1", good[:-1] + bytes([good[-1] | 0x80])),
        "extra_byte_in_stream": ("a stream one byte longer than its codes", good[:14] + b"\x01" + good[15:] + b"\x00"),
        "place_beyond": ("the last gap is 6 and leads to place 8 of 8", good[:-1] + b"\x04"),
        "zeros_to_the_end": ("a code without its one", good[:-2] + b"\x02\x00"),
        "truncated": ("the last byte is missing", good[:-1]),
        "trailing": ("a byte follows", good + b"\x00"),
        "index_missing": ("the bytes end before the index", good[:13]),
        "dense_nan": ("a dense value is NaN", dense[:-2] + b"\xc0\x7f"),
        "dense_infinite": ("a dense value is infinite", dense[:-2] + b"\x80\xff"),
        "dense_negative_zero": ("a dense value is -0.0", dense[:-2] + b"\x00\x80"),
    }
