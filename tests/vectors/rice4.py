"""Scenarios of the golden vectors by `rice4`: name -> (comment, bytes)."""

import numpy as np

from compeft_core import Compression, compress, encode, layout_of
from tests.vectors.rice import Scenarios, flat, noise, sparse


def valid() -> Scenarios:
    layout = layout_of({"a": (40,), "b": (60,), "c": (30,)})
    updates = {
        "by_hand": ("1 -1 0 0 0 1 0 0, worked out in docs/format.md", flat([1, -1, 0, 0, 0, 1, 0, 0], density=1.0)),
        "zeros": ("ten entries, none kept: five zeros in the index", flat([0.0] * 10)),
        "empty": ("no parameters at all", flat([])),
        "all_kept": ("every entry kept: signs only", flat(noise(9, 1), density=1.0)),
        "complement": ("more than half kept: the gaps list the others", flat(noise(40, 2), density=0.8)),
        "exactly_half": ("half kept: k = 0, the gaps list what is kept", flat(noise(40, 5), density=0.5)),
        "one_listed": ("one entry: three lanes are empty", sparse(1000, [999])),
        "three_listed": ("three entries: the last lane is empty", sparse(1000, [1, 2, 900])),
        "five_percent": ("k = 4, two blocks, the last of 464 positions, a dense part", flat(noise(66_008, 4), dense=8)),
        "one_percent": ("Rice parameter 6", flat(noise(20_000, 6), density=0.01)),
        "ten_percent": ("Rice parameter 3", flat(noise(2_000, 7), density=0.1)),
        "twenty_percent": ("Rice parameter 2", flat(noise(1_000, 8), density=0.2)),
        "block_edges": ("the first and the last place of blocks: k = 15", sparse(131_073, [0, 65_535, 65_536, 131_072])),
        "empty_block": ("three blocks, the middle one keeps nothing", sparse(140_000, [5, 70, 131_080, 139_999])),
        "far_entry": (
            "a gap of 60,000 after 40 neighbours: a run of zeros",
            flat([1.0] * 40 + [0.0] * 60_000 + [1.0], density=1),
        ),
        "long_run": (
            "5,000 neighbours and a gap of 60,000: 7,500 zeros",
            flat([1.0] * 5_000 + [0.0] * 60_000 + [1.0], density=1),
        ),
        "groups": (
            "one scale for each of three tensors",
            compress(layout, np.array(noise(130, 3), np.float32), Compression(0.2, "norm", granularity="tensor")),
        ),
    }
    return {f"rice4_{name}": (comment, encode(update, codec="rice4")) for name, (comment, update) in updates.items()}


def malformed() -> Scenarios:
    """Each breaks one rule of docs/format.md, section 4. `good` has 3 of 8 entries: index 03 00 00 00 00, signs 02, lanes 01 01 06."""
    good = encode(flat([1, -1, 0, 0, 0, 1, 0, 0], density=1.0), codec="rice4")
    head, index, signs, lanes = good[:13], good[13:18], good[18:19], good[19:]
    assert (index, signs, lanes) == (b"\x03\0\0\0\0", b"\x02", b"\x01\x01\x06")
    bodies = {
        "too_many_kept": ("nine kept of eight", b"\x09" + index[1:] + signs + lanes),
        "index_missing": ("the index ends after the count", b"\x03"),
        "truncated": ("the last byte is missing", index + signs + lanes[:-1]),
        "trailing": ("a byte follows", index + signs + lanes + b"\0"),
        "sign_padding": ("a padding bit of the signs is 1", index + b"\x0a" + lanes),
        "lane_padding": ("a padding bit of lane 0 is 1", index + signs + b"\x05" + lanes[1:]),
        "last_lane_padding": ("a padding bit of lane 2 is 1", index + signs + lanes[:2] + b"\x86"),
        "lane_too_long": ("lane 0 has a byte more than its code", b"\x03\x01\0\0\0" + signs + b"\x01\0" + lanes[1:]),
        "empty_lane_too_long": ("lane 3 has a byte and no code", b"\x03\0\0\0\x01" + signs + lanes + b"\0"),
        "lane_into_the_next": ("the code of lane 0 ends in lane 1", index + signs + b"\0\x03\x06"),
        "zeros_to_the_end": ("lane 2 has a code without its one", index + signs + lanes[:2] + b"\0"),
        "place_beyond": ("the last gap is 6 and leads to place 8 of 8", index + signs + lanes[:2] + b"\x08"),
        "extra_of_nothing": ("a block that lists nothing has a lane of one byte", b"\x08\x01\0\0\0" + b"\x02" + b"\0"),
        "extra_beyond": ("an extra of 2^32 - 1 bytes", b"\x03\xff\xff\xff\xff\x0f\0\0\0" + signs + lanes),
    }
    return {f"rice4_{name}": (comment, head + body) for name, (comment, body) in bodies.items()}
