"""Safetensors files: what the library writes is read, what we write the library reads, and hostile headers are refused."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from compeft_client.checkpoints.safetensors_file import (
    from_float32,
    header_bytes,
    read_bytes,
    read_header,
    read_shards,
    read_values,
)
from compeft_core.errors import CompeftError, FormatError, InputError, LimitError, NotFiniteError

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "U8", "shape": [3], "data_offsets": [16, 19]},
}


def raw(header: object, data: bytes = bytes(19), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def changed(tensor: str = "a", **fields: object) -> dict[str, object]:
    return {name: entry | fields if name == tensor else entry for name, entry in GOOD.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_floats_come_out_as_float32_and_go_back_unchanged(file: Path, dtype: torch.dtype) -> None:
    values = torch.randn(5, 7).to(dtype)
    save_file({"t": values}, file, metadata={"format": "pt"})
    header = read_header(file)
    tensor = header.tensors["t"]
    found = np.concatenate(list(read_values(tensor)))
    np.testing.assert_array_equal(found, values.float().numpy().reshape(-1))
    assert header.metadata == {"format": "pt"}
    if dtype != torch.float64:
        assert from_float32(tensor.dtype, found) == read_bytes(tensor)


def test_the_library_reads_what_our_header_describes(file: Path) -> None:
    head, starts = header_bytes([("b", "F16", (2,)), ("a", "F32", (1, 2)), ("n", "I64", ())], {"format": "pt"})
    data = bytearray(head + bytes(20))
    data[starts["a"] : starts["a"] + 8] = np.array([1, 2], "<f4").tobytes()
    data[starts["n"] : starts["n"] + 8] = np.array([7], "<i8").tobytes()
    data[starts["b"] : starts["b"] + 4] = np.array([3, 4], "<f2").tobytes()
    file.write_bytes(data)
    with safe_open(file, "np") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert [opened.get_tensor(name).tolist() for name in "abn"] == [[[1.0, 2.0]], [3.0, 4.0], 7]
    assert list(read_header(file).tensors) == ["n", "a", "b"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        raw(GOOD, length=2**63),
        raw(GOOD, length=10**6),
        raw(b"[]"),
        raw(b"{"),
        raw(b"\xff\xfe"),
        raw(b'{"a":' * 100_000),
        raw(b'{"a": 1, "a": 2}'),
        raw({"a": 7}),
        raw({"a": {"dtype": "F32"}}),
        raw(changed(dtype="F3")),
        raw(changed(dtype=["F32"])),
        raw(changed(shape=[-2, -2])),
        raw(changed(shape=[2.0, 2])),
        raw(changed(shape=[True, 4])),
        raw(changed(shape=[1] * 9 + [4])),
        raw(changed(shape=[2, 3])),
        raw(changed(data_offsets=[16, 0])),
        raw(changed(data_offsets=[0, 16, 16])),
        raw(changed("b", data_offsets=[15, 18])),
        raw(changed("b", data_offsets=[17, 20]), bytes(20)),
        raw(changed("b", data_offsets=[2**70, 2**70 + 3])),
        raw(GOOD, bytes(20)),
        raw(GOOD, bytes(18)),
        raw(GOOD | {"__metadata__": {"format": 1}}),
        raw(GOOD | {"__metadata__": "pt"}),
        raw({"": GOOD["a"], "b": GOOD["b"]}),
        raw({"x" * 1025: GOOD["a"], "b": GOOD["b"]}),
        raw(b'{"\\ud800": {"dtype": "U8", "shape": [19], "data_offsets": [0, 19]}}'),
    ],
)
def test_a_header_that_does_not_describe_its_file_exactly_is_refused(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(FormatError):
        read_header(file)


def test_more_parameters_or_tensors_than_the_caps_are_refused(file: Path) -> None:
    file.write_bytes(raw({"a": {"dtype": "F32", "shape": [2**32], "data_offsets": [0, 2**34]}}))
    with pytest.raises(LimitError, match="4294967296 parameters"):
        read_header(file)
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    file.write_bytes(raw({f"t{i}": empty for i in range(2**18 + 1)}, b""))
    with pytest.raises(LimitError, match="262145 tensors"):
        read_header(file)


@given(st.data())
def test_a_changed_byte_is_refused_or_leaves_a_header_that_fits(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    octets = bytearray(raw(GOOD))
    octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("flip") / "x.safetensors"
    file.write_bytes(octets)
    try:
        header = read_header(file)
    except CompeftError:
        return
    assert sum(t.bytes for t in header.tensors.values()) == 19


def test_nan_and_infinity_are_named(file: Path) -> None:
    save_file({"t": torch.tensor([1.0, float("nan")])}, file)
    with pytest.raises(NotFiniteError, match="'t'"):
        list(read_values(read_header(file).tensors["t"]))


def test_a_sharded_checkpoint_is_one(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "m-1.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "m-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}))
    assert {name: t.size for name, t in read_shards(index).tensors.items()} == {"a": 2, "b": 3}


@pytest.mark.parametrize("shard", ["../m-1.safetensors", "/etc/passwd", "sub/m-1.safetensors", "m-1.bin", "..", ""])
def test_an_index_leads_to_files_beside_it_only(tmp_path: Path, shard: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(FormatError, match="beside it"):
        read_shards(index)


def test_an_index_that_lies_or_is_none_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "m-1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": "m-1.safetensors"}}))
    with pytest.raises(FormatError, match="it is not"):
        read_shards(index)
    index.write_text("{}")
    with pytest.raises(FormatError, match="weight_map"):
        read_shards(index)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_header(tmp_path / "none.safetensors")
