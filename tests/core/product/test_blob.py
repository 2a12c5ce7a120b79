"""The bytes: every set of symbols has one encoding, two decoders agree on it, and everything else is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compeft_core.errors import FormatError, InputError, LimitError
from compeft_core.product import (
    ProductLimits,
    ProductSettings,
    ProductSymbols,
    check_product,
    decode_product,
    encode_product,
    factors_of,
    parse_product,
    write_product,
)
from tests.core.product import reference_decoder as reference
from tests.core.product.experts import expert, shapes_of
from tests.core.product.strategies import symbols

MANY = settings(deadline=None, max_examples=150)


def same(a: ProductSymbols, b: ProductSymbols) -> bool:
    return a.shapes == b.shapes and all(
        np.array_equal(x, y) for x, y in ((a.ranks, b.ranks), (a.scales, b.scales), (a.entries, b.entries))
    )


@MANY
@given(made=symbols(), workers=st.integers(1, 2))
def test_symbols_come_back_as_they_were_written(made: ProductSymbols, workers: int) -> None:
    blob = write_product(made, workers=workers)
    parsed = parse_product(blob, made.shapes, workers=workers)
    assert same(parsed, made)
    assert parsed.entries.dtype == made.entries.dtype
    assert check_product(blob, made.shapes, workers=workers) == made.ranks.sum()


@settings(deadline=None, max_examples=40)
@given(made=symbols())
def test_the_decoder_written_from_the_page_reads_the_same(made: ProductSymbols) -> None:
    modules = reference.decode(write_product(made), list(made.shapes))
    assert [len(m) for m in modules] == made.ranks.tolist()
    assert [c.scale for m in modules for c in m] == made.scales.tolist()
    assert [e for m in modules for c in m for e in c.left + c.right] == made.entries.tolist()
    for module, shape, (left, right) in zip(modules, made.shapes, factors_of(made), strict=True):
        columns, rows = reference.factors(module, shape)
        assert [np.ascontiguousarray(left[:, j]).tobytes() for j in range(left.shape[1])] == columns
        assert [row.tobytes() for row in right] == rows


def test_an_expert_of_25_kilobytes_decodes_the_same_twice() -> None:
    modules = expert(shapes=[(384, 384), (1536, 384), (384, 1536)] * 12, rank=16)
    encoded = encode_product(modules, ProductSettings(budget=25_000))
    assert len(encoded.blob) > 24_000
    slow = reference.decode(encoded.blob, shapes_of(modules))
    assert [e for m in slow for c in m for e in c.left + c.right] == encoded.symbols.entries.tolist()


def outcome(blob: bytes, shapes: list[tuple[int, int]]) -> bool:
    """Whether both decoders take the bytes; they must agree."""
    try:
        parsed = parse_product(blob, shapes)
    except FormatError:
        with pytest.raises(reference.Malformed):
            reference.decode(blob, shapes)
        return False
    assert write_product(parsed) == blob
    assert [e for m in reference.decode(blob, shapes) for c in m for e in c.left + c.right] == parsed.entries.tolist()
    return True


@MANY
@given(made=symbols(most_modules=3, most_side=12), data=st.data())
def test_altered_bytes_are_refused_by_both_decoders_or_are_an_encoding(made: ProductSymbols, data: st.DataObject) -> None:
    blob = bytearray(write_product(made))
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    outcome(bytes(blob[: data.draw(st.integers(0, len(blob)))]), list(made.shapes))
    outcome(bytes(blob), list(made.shapes))


@MANY
@given(tail=st.binary(max_size=40), sides=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=4))
def test_any_bytes_after_a_head_are_refused_by_both_decoders_or_are_an_encoding(
    tail: bytes, sides: list[tuple[int, int]]
) -> None:
    outcome(b"CPFT\x01\x03" + bytes([len(sides)]) + tail, sides)


@MANY
@given(made=symbols(most_modules=3, most_side=12), more=st.binary(min_size=1, max_size=5))
def test_longer_and_shorter_bytes_are_refused_or_encode_something_else(made: ProductSymbols, more: bytes) -> None:
    blob, shapes = write_product(made), list(made.shapes)
    for other in (blob + more, blob + bytes(len(more)), blob[:-1]):
        outcome(other, shapes)


def test_bytes_after_an_expert_and_an_expert_cut_short_are_refused() -> None:
    modules = expert()
    blob = encode_product(modules, ProductSettings(budget=3000)).blob
    for bad in (blob + b"x", blob + bytes(5), blob[:-100], blob[:7], blob[:3], b""):
        with pytest.raises(FormatError):
            parse_product(bad, shapes_of(modules))
    # A stream that lacks its last byte alone can be the one stream of other symbols: a manifest's SHA-256 tells such files apart.
    outcome(blob[:-1], shapes_of(modules))


def test_segments_have_streams_of_their_own_and_any_number_of_threads_gives_the_same() -> None:
    modules = expert(shapes=[(600_000, 4)] * 4, rank=1)
    encoded = encode_product(modules, ProductSettings(step=0.003))
    assert encode_product(modules, ProductSettings(step=0.003), workers=2).blob == encoded.blob
    assert write_product(encoded.symbols, workers=2) == encoded.blob
    one, two = (decode_product(encoded.blob, shapes_of(modules), workers=w) for w in (1, 2))
    assert all(
        a.left.tobytes() == b.left.tobytes() and a.right.tobytes() == b.right.tobytes() for a, b in zip(one, two, strict=True)
    )
    assert same(parse_product(encoded.blob, shapes_of(modules), workers=2), encoded.symbols)
    with pytest.raises(FormatError):
        parse_product(encoded.blob, shapes_of(modules)[:-1])


def test_limits_are_checked_before_anything_is_allocated() -> None:
    modules = expert()
    encoded = encode_product(modules, ProductSettings(budget=3000))
    with pytest.raises(LimitError, match="components, the cap is 1"):
        parse_product(encoded.blob, shapes_of(modules), ProductLimits(rank=1))
    with pytest.raises(LimitError, match="entries, the cap is 100"):
        check_product(encoded.blob, shapes_of(modules), ProductLimits(entries=100))
    with pytest.raises(InputError, match="both sides"):
        parse_product(encoded.blob, [(0, 4)])


def test_a_few_bytes_cannot_claim_much() -> None:
    side = 1 << 22
    entries = np.zeros(2 * side, np.int8)
    entries[[0, side]] = 2
    symbols = ProductSymbols(((side, side),), np.array([1]), np.array([0]), entries)
    with pytest.raises(InputError, match="fewer than a decoder accepts"):
        write_product(symbols)


@pytest.mark.parametrize(
    ("entries", "scales"),
    [([0, 0, 2, 0], [0]), ([1, 0, 2, 0], [0]), ([2, 0, 2, 0], [1024]), ([2, 0, 2, 0], [-5000]), ([32767, 0, 2, 0], [0])],
    ids=["zero", "odd at first", "scale", "far scale", "large"],
)
def test_symbols_that_have_no_encoding_are_refused(entries: list[int], scales: list[int]) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_product(ProductSymbols(((2, 2),), np.array([1]), np.array(scales), np.array(entries, np.int16)))


def test_an_entry_of_the_wrong_parity_has_no_encoding() -> None:
    shapes, one = ((3, 1),), np.array([1])  # 2 leads to state 2, 0 from there to state 1, where entries are odd
    assert write_product(ProductSymbols(shapes, one, one, np.array([2, 0, 1, 2], np.int16)))
    with pytest.raises(InputError, match="cannot be written"):
        write_product(ProductSymbols(shapes, one, one, np.array([2, 0, 2, 2], np.int16)))


def test_symbols_whose_numbers_disagree_are_refused() -> None:
    entries = np.array([2, 0, 2, 0], np.int16)
    for ranks, scales in (([1, 1], [0]), ([1], [0, 0]), ([2], [0, 0]), ([-1], [])):
        with pytest.raises(InputError):
            write_product(ProductSymbols(((2, 2),), np.array(ranks), np.array(scales, np.int64), entries))
    with pytest.raises(InputError, match="cannot be written"):
        write_product(ProductSymbols(((1, 1),), np.array([2]), np.array([0, 0]), entries))
