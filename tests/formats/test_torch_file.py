"""Files of torch.save: tensors come out as torch has them, and nothing in the file ever runs."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokpipe.errors import ConfigError
from tokpipe.formats.torch_file import Placeholder, StoredTensor, TorchFile


class Touches:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def values(file: TorchFile, tensor: StoredTensor) -> bytes:
    return b"".join(bytes(piece) for piece in file.data_of(tensor))


def test_tensors_of_every_type_and_stride_come_out(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32)
    tensors = {
        "whole": base.reshape(2, 3, 4),
        "middle": base[5:11],
        "transposed": base.reshape(4, 6).t(),
        "sliced": base.reshape(4, 6)[1:3, ::2],
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "bfloat16": torch.ones(3, dtype=torch.bfloat16),
        "float16": torch.ones(3, dtype=torch.float16),
        "int64": torch.arange(3),
        "uint8": torch.arange(3, dtype=torch.uint8),
        "uint16": torch.tensor([1, 2, 65535], dtype=torch.uint16),
        "bool": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    path = tmp_path / "m.pt"
    torch.save(collections.OrderedDict(tensors), path)
    with TorchFile(path) as file:
        assert file.content.keys() == tensors.keys()
        for name, tensor in tensors.items():
            found = file.content[name]
            assert isinstance(found, StoredTensor), name
            assert found.shape == tuple(tensor.shape), name
            wanted = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            assert values(file, found) == wanted.numpy().tobytes(), name


def test_large_tensors_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokpipe.formats.torch_file.PIECE_BYTES", 1000)
    torch.save({"x": torch.arange(1000)}, tmp_path / "m.pt")
    with TorchFile(tmp_path / "m.pt") as file:
        pieces = [bytes(piece) for piece in file.data_of(file.content["x"])]
    assert {len(piece) for piece in pieces} == {1000}
    assert b"".join(pieces) == np.arange(1000).tobytes()


def test_nothing_in_a_checkpoint_runs(tmp_path: Path) -> None:
    touched, path = tmp_path / "touched", tmp_path / "m.ckpt"
    checkpoint = {
        "state_dict": {"w": torch.ones(2)},
        "hyper_parameters": argparse.Namespace(a=Touches(touched)),
        "callbacks": {Touches: Touches(touched)},
        "numpy": np.float64(3.0),
        "path": Path("/"),
        "set": {1, 2},
        "nested": [Touches(touched), (Touches(touched),)],
    }
    torch.save(checkpoint, path)
    with TorchFile(path) as file:
        content = file.content
    assert not touched.exists()
    assert isinstance(content["hyper_parameters"], Placeholder)
    assert content["hyper_parameters"].described == "a argparse.Namespace"
    assert content["nested"][0].described == "a posix.system"
    assert isinstance(content["state_dict"]["w"], StoredTensor)
    torch.load(path, weights_only=False)
    assert touched.exists(), "the checkpoint would have done nothing anyway"


def _archive(path: Path, data: bytes, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", data)
        for name, record in records.items():
            archive.writestr(f"m/data/{name.removeprefix('r')}", record)
    return path


RUN = b"S'touch TOUCHED'\n"
CALLS = {
    "REDUCE": b"cos\nsystem\n(" + RUN + b"tR.",
    "INST": b"(" + RUN + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + RUN + b"o.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + RUN + b"\x85R.",
    "getattr": b"cbuiltins\ngetattr\n(cbuiltins\ngetattr\n(cos\npath\nS'os'\ntRS'system'\ntR("
    + RUN
    + b"tR.",
    "eval": b'cbuiltins\neval\n(S\'__import__("os").system("touch TOUCHED")\'\ntR.',
}


@pytest.mark.parametrize("opcode", CALLS)
def test_no_opcode_reaches_a_function(tmp_path: Path, opcode: str) -> None:
    touched = tmp_path / "touched"
    pickled = CALLS[opcode].replace(b"TOUCHED", str(touched).encode())
    TorchFile(_archive(tmp_path / "m.ckpt", pickled)).__exit__(None, None, None)
    assert not touched.exists()
    pickle.loads(pickled)
    assert touched.exists(), "the pickle would have done nothing anyway"


def test_nothing_can_be_set_on_what_the_pickle_is_given(tmp_path: Path) -> None:
    pickled = b"ctorch._utils\n_rebuild_tensor_v2\n(N(dS'call'\ncos\nsystem\nstb."
    with pytest.raises(ConfigError, match="it sets 'call' of a function"):
        TorchFile(_archive(tmp_path / "m.ckpt", pickled))


def _tensor_pickle(storage: str, offset: int, size: Any, stride: Any, numel: int) -> bytes:
    class Stub:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (
                _Storage(storage, numel),
                offset,
                size,
                stride,
                False,
                {},
            )

    import io

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, _Storage):
                return ("storage", torch.FloatStorage, value.key, "cpu", value.numel)
            return None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"x": Stub()})
    return buffer.getvalue()


class _Storage:
    def __init__(self, key: str, numel: int) -> None:
        self.key, self.numel = key, numel


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("0", 0, (2, 2), (2, 1), 4), None),
        (("0", 1, (2, 2), (2, 1), 4), "has room for 4 items, and a tensor of"),
        (("0", 0, (5,), (1,), 5), "has room for 4 items"),
        (("0", 0, (2, 3), (2, 1), 4), "has room for 4 items"),
        (("0", 0, (10**12, 4), (0, 1), 4), "has room for 4 items"),
        (("0", -1, (2,), (1,), 4), "in a way that torch.save does not"),
        (("0", 0, (2,), (-1,), 4), "in a way that torch.save does not"),
        (("0", 0, (2, 2), (1,), 4), "shorter than"),
        (("1", 0, (2,), (1,), 4), "it has no record m/data/1"),
        (("../data.pkl", 0, (2,), (1,), 4), "it has no record"),
    ],
)
def test_a_tensor_that_leaves_its_record_is_refused(
    tmp_path: Path, arguments: tuple[Any, ...], problem: str | None
) -> None:
    path = _archive(tmp_path / "m.ckpt", _tensor_pickle(*arguments), r0=bytes(16))
    if problem is None:
        with TorchFile(path) as file:
            assert values(file, file.content["x"]) == bytes(16)
        return
    with pytest.raises(ConfigError, match=problem):
        TorchFile(path)


def test_files_of_other_kinds_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    path.write_bytes(b"hello")
    with pytest.raises(ConfigError, match=r"is no file of torch.save"):
        TorchFile(path)
    torch.save({"x": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ConfigError, match=r"PyTorch 1.6 and newer .*weights_only=True"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ConfigError, match=r"is a zip file, but none of torch.save"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"N." * 1000)
    with pytest.raises(ConfigError, match="is compressed"):
        TorchFile(path)
    _archive(path, b"N.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/constants.pkl", b"N.")
    with pytest.raises(ConfigError, match=r"TorchScript program.*cosmos_dv"):
        TorchFile(path)
    _archive(path, b"N.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("m/byteorder", b"big")
    with pytest.raises(ConfigError, match="big-endian"):
        TorchFile(path)
    with pytest.raises(ConfigError, match="No such file"):
        TorchFile(tmp_path / "missing.ckpt")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_ends_in_one_kind_of_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "m.ckpt"
    torch.save({"state_dict": {"w": torch.ones(4)}, "epoch": 3}, path)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        with TorchFile(path) as file:
            weights = file.content["state_dict"]["w"]
            if isinstance(weights, StoredTensor):
                values(file, weights)
    except ConfigError:
        pass
    except (KeyError, TypeError):
        pass  # content of another shape, which is for the caller to find
