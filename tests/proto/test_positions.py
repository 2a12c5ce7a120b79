"""Tables of positions: back as they were, and hostile payloads refused."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core import layout_of
from compeft_core.errors import FormatError, LimitError
from compeft_proto.packed_manifest import deflate
from compeft_proto.positions_part import columns_of, read_tables, write_tables


def table(*positions: int, columns: int = 10) -> np.ndarray:
    places = np.array(positions, np.int64)
    return np.stack([places // columns, places % columns])


@given(st.sets(st.integers(0, 2**40), min_size=1, max_size=50), st.integers(1, 2**31))
def test_any_table_comes_back(positions: set[int], columns: int) -> None:
    written = table(*sorted(positions), columns=columns)
    width = columns_of(written)
    assert width > 0
    layout = layout_of({"t": (2, len(positions)), "u": (2, 1)}, dense=["t", "u"])
    both = [written, table(7)]
    found = read_tables(write_tables(both, [width, 10]), layout, [width, 10])
    for got, expected in zip(found, both, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_example_of_the_page_by_hand() -> None:
    written = write_tables([table(1, 3, 24)], [10])
    assert zlib.decompress(written, -15).hex() == "010114"


@pytest.mark.parametrize("bad", [table(3, 3), table(5, 4), -table(1, 2), table(1)[:, :0], np.zeros((3, 4), np.int64)])
def test_what_is_not_a_sorted_table_is_not_coded(bad: np.ndarray) -> None:
    assert columns_of(bad) == 0


LAYOUT = layout_of({"t": (2, 3)}, dense=["t"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(2),
        bytes(4),
        bytes([255, 0, 0]),
        bytes([255, 0, 0]) + (254).to_bytes(8, "little"),
        bytes([255, 255, 0]) + 2 * (2**61).to_bytes(8, "little"),
        bytes([255, 0, 0]) + (2**64 - 1).to_bytes(8, "little"),
    ],
)
def test_a_payload_that_is_not_of_the_table_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        read_tables(deflate(data), LAYOUT, [10])


def test_a_payload_that_inflates_to_more_is_refused_before_it_is_made() -> None:
    with pytest.raises(LimitError):
        read_tables(deflate(bytes(10**7)), LAYOUT, [10])
