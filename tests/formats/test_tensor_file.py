"""safetensors files without torch: what the reference writes is read, and the other way round."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.errors import ConfigError
from tokpipe.formats.tensor_file import TensorFile, TensorInfo, write_tensor_file

TENSORS = {
    "b": torch.arange(6, dtype=torch.int64).reshape(2, 3),
    "a.weight": torch.randn(3, 1, 2, generator=torch.Generator().manual_seed(0)),
    "a.scale": torch.tensor(1.5, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "half": torch.ones(3, dtype=torch.float16),
    "flags": torch.tensor([True, False]),
}


def test_what_the_reference_writes_is_read_and_written_again() -> None:
    file = TensorFile.parse("w", safetensors.torch.save(TENSORS))
    assert {name: info for name, (info, _) in file.tensors.items()} == {
        "b": TensorInfo("I64", (2, 3)),
        "a.weight": TensorInfo("F32", (3, 1, 2)),
        "a.scale": TensorInfo("BF16", ()),
        "empty": TensorInfo("F32", (0, 4)),
        "half": TensorInfo("F16", (3,)),
        "flags": TensorInfo("BOOL", (2,)),
    }
    again = safetensors.torch.load(file.to_bytes())
    assert again.keys() == TENSORS.keys()
    assert all(torch.equal(again[name], TENSORS[name]) for name in TENSORS)


def test_some_keys_can_be_left_out() -> None:
    file = TensorFile.parse("w", safetensors.torch.save(TENSORS)).without(("a.", "fl"))
    assert safetensors.torch.load(file.to_bytes()).keys() == {"b", "empty", "half"}
    assert TensorFile.parse("w", file.to_bytes()).without(()).sha256() == file.sha256()


def test_the_hash_is_of_names_types_shapes_and_values() -> None:
    def digest(tensors: dict[str, torch.Tensor]) -> str:
        return TensorFile.parse("w", safetensors.torch.save(tensors)).sha256()

    x = torch.arange(6.0)
    same = digest({"x": x, "y": x + 1})
    assert digest({"y": x + 1, "x": x}) == same
    others = [
        {"x": x, "z": x + 1},
        {"x": x + 1, "y": x},
        {"x": x.reshape(2, 3), "y": x + 1},
        {"x": x.view(torch.int32), "y": x + 1},
        {"x": x},
    ]
    assert len({same, *map(digest, others)}) == 1 + len(others)


WHOLE = safetensors.torch.save({"x": torch.zeros(4), "y": torch.ones(2)})


@given(cut=st.integers(0, len(WHOLE) - 1))
def test_a_file_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(
        ConfigError, match=r"^s3://w: is no whole safetensors file .*tokpipe convert"
    ):
        TensorFile.parse("s3://w", WHOLE[:cut])


def _file(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}",
        _file([1]),
        _file({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        _file({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        _file({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(8)),
        _file({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(4)),
        _file({"x": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4)),
        _file({"x": {"dtype": "F32", "shape": 3}}),
        _file({"x": None}),
        struct.pack("<Q", 3) + b"\xff\xfe{",
    ],
)
def test_a_header_that_contradicts_itself_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="is no whole safetensors file"):
        TensorFile.parse("w", data)


def test_a_writer_that_gives_too_few_bytes_is_told(tmp_path: Path) -> None:
    infos = {"x": TensorInfo("F32", (3,))}
    with pytest.raises(ValueError, match="x has 8 bytes, not 12"):
        write_tensor_file(tmp_path / "w", infos, lambda name: [bytes(4), bytes(4)])
