"""Layouts as messages: small, one message for each layout, and hostile ones refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compeft_core import Layout, layout_of
from compeft_core.errors import CompeftError, FormatError, LimitError
from compeft_core.layout import MAX_NAMES_BYTES, MAX_TENSORS
from compeft_proto.convert import layout_from_proto, layout_to_proto
from compeft_proto.front_coding import FrontCoded, front_code, front_decode
from compeft_proto.v1.expert_pb2 import Layout as Message
from compeft_proto.v1.expert_pb2 import Shape

WORDS = st.text(st.sampled_from("ab.é"), max_size=12)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    shapes = draw(st.dictionaries(WORDS.filter(bool), st.lists(st.integers(0, 300), max_size=3).map(tuple), max_size=8))
    return layout_of(shapes, draw(st.sets(st.sampled_from(sorted(shapes)))) if shapes else ())


def lora(layers: int) -> Layout:
    name = "base_model.model.encoder.layer.{}.attention.self.{}.lora_{}.weight"
    shapes = {"A": (16, 384), "B": (384, 16)}
    return layout_of({name.format(i, m, ab): shapes[ab] for i in range(layers) for m in ("query", "key", "value") for ab in "AB"})


@given(st.lists(WORDS))
def test_names_come_back_whatever_they_share(names: list[str]) -> None:
    assert front_decode(front_code(names)) == names


@given(layouts())
def test_a_layout_comes_back_from_its_message(layout: Layout) -> None:
    assert layout_from_proto(Message.FromString(layout_to_proto(layout).SerializeToString())) == layout


def test_what_names_share_is_sent_once() -> None:
    layout = lora(12)
    plain = sum(len(t.name) for t in layout.tensors)
    assert layout_to_proto(layout).ByteSize() < plain / 4


def test_the_prefix_is_the_longest_then_the_suffix_is() -> None:
    assert front_code(["aXa", "aYa", "aa", "aaa"]) == [
        FrontCoded(0, 0, b"aXa"),
        FrontCoded(1, 1, b"Y"),
        FrontCoded(1, 1, b""),
        FrontCoded(2, 0, b"a"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        FrontCoded(0, 1, b"aY"),
        FrontCoded(0, 0, b"aYa"),
        FrontCoded(1, 0, b"Ya"),
        FrontCoded(2, 2, b""),
        FrontCoded(4, 0, b""),
        FrontCoded(1, 1, b"\xff"),
        FrontCoded(1, 1, b"x" * 1023),
        FrontCoded(2**32 - 1, 2**32 - 1, b""),
    ],
)
def test_any_other_coding_of_a_name_is_refused(row: FrontCoded) -> None:
    with pytest.raises(FormatError):
        front_decode([FrontCoded(0, 0, b"aXa"), row])


@given(layouts(), st.data())
def test_there_is_one_message_for_a_layout(layout: Layout, data: st.DataObject) -> None:
    message = layout_to_proto(layout)
    for column in (message.shared_prefix, message.shared_suffix, message.shape):
        if column:
            column[data.draw(st.integers(0, len(column) - 1))] = data.draw(st.integers(0, 9))
    message.ternary = data.draw(st.integers(0, 9))
    try:
        found = layout_from_proto(message)
    except CompeftError:
        return
    assert layout_to_proto(found) == message


@pytest.mark.parametrize(
    "message",
    [
        Message(middle=[b"a"], shared_prefix=[0], shared_suffix=[0], shape=[0]),
        Message(middle=[b"a"], shared_prefix=[0], shared_suffix=[0], shape=[1], shapes=[Shape(), Shape(sizes=[1])]),
        Message(middle=[b"a"], shared_prefix=[0], shared_suffix=[0], shape=[0], shapes=[Shape(), Shape(sizes=[1])]),
        Message(middle=[b"a"], shared_prefix=[0], shared_suffix=[], shape=[0], shapes=[Shape()]),
        Message(middle=[b"a"], shared_prefix=[0], shared_suffix=[0], shape=[0], shapes=[Shape()], ternary=2),
        Message(middle=[b"a"], shared_prefix=[0], shared_suffix=[0], shape=[0], shapes=[Shape(sizes=[1] * 9)], ternary=1),
        Message(middle=[b""], shared_prefix=[0], shared_suffix=[0], shape=[0], shapes=[Shape()]),
        Message(middle=[b"a", b""], shared_prefix=[0, 1], shared_suffix=[0, 0], shape=[0, 0], shapes=[Shape()]),
        Message(middle=[b"b", b"a"], shared_prefix=[0, 0], shared_suffix=[0, 0], shape=[0, 0], shapes=[Shape()]),
        Message(middle=[b"a", b"b"], shared_prefix=[0, 0], shared_suffix=[0, 0], shape=[0, 1], shapes=[Shape(), Shape()]),
    ],
)
def test_a_message_that_is_no_layout_is_malformed(message: Message) -> None:
    with pytest.raises(FormatError):
        layout_from_proto(message)


def test_a_layout_of_58_layers_of_256_experts_is_one_message() -> None:
    parts = [f"{name}_proj.lora_{side}.weight" for name in ("gate", "up", "down") for side in "AB"]
    names = [f"model.layers.{i}.mlp.experts.{e}.{part}" for i in range(58) for e in range(256) for part in parts]
    layout = layout_of({name: (1, 8) if "lora_A" in name else (8, 1) for name in names})
    message = layout_to_proto(layout)
    assert len(layout.tensors) == 89_088
    assert layout_from_proto(message) == layout
    assert len(message.SerializeToString()) < 16 * 89_088


def test_names_that_unfold_beyond_all_bounds_are_refused() -> None:
    count = MAX_NAMES_BYTES // 1000 + 1  # each name is the one before with another last byte: 1,000 bytes from one
    first, rest = b"x" * 999 + b"0", [b"%d" % (1 + i % 9) for i in range(count - 1)]
    rows = [FrontCoded(0, 0, first), *(FrontCoded(999, 0, byte) for byte in rest)]
    with pytest.raises(LimitError, match="names have more than 33554432 bytes"):
        front_decode(rows)
    assert len(front_decode(rows[:-1])) == count - 1


def test_too_many_tensors_are_refused_before_their_names_are_made() -> None:
    with pytest.raises(LimitError):
        layout_from_proto(Message(middle=[b""] * (MAX_TENSORS + 1)))
