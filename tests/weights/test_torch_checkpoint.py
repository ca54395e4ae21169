"""torch.save checkpoints: tensors load as torch saved them, and nothing in the file ever runs."""

import argparse
import collections
import contextlib
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokpipe.errors import ConfigError
from tokpipe.weights.checkpoint import load_checkpoint, not_plain


class Calls:
    """Calls ``function(argument)`` when it is unpickled."""

    def __init__(self, function: Any, argument: Any) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> Any:
        return self.call


class Settings(dict[str, Any]):
    pass


class Meters(list[Any]):
    pass


class Subclass(torch.Tensor):
    pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.ckpt"


@pytest.fixture
def touched(tmp_path: Path) -> Path:
    return tmp_path / "touched"


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def archive(path: Path, data: bytes, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", data)
        file.writestr("m/version", "3")
        for name, record in records.items():
            file.writestr(f"m/{name.replace('_', '/')}", record)
    return path


def test_tensors_of_every_type_and_stride_load(path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32)
    matrix = base.reshape(4, 6)
    dtypes = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.uint16)
    tensors = [
        *(matrix, base[5:11], matrix.t(), matrix[1:3, ::2], base.reshape(2, 3, 4)),
        *(torch.tensor([1, 2, 4]).to(dtype) for dtype in dtypes),
        *(torch.tensor([True, False]), torch.tensor(2.5).double(), torch.zeros(0, 3)),
        torch.nn.Parameter(torch.randn(2, 2)),
    ]
    named = collections.OrderedDict((str(at), tensor) for at, tensor in enumerate(tensors))
    found = load_checkpoint(saved(path, named))
    assert found.keys() == named.keys()
    for name, tensor in named.items():
        assert not_plain(found[name]) is None, name
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].double(), tensor.double())


TRAINING_STATE = {
    "hyper_parameters": argparse.Namespace(lr=1e-4, name="x"),
    "settings": Settings(lr=1),
    "callbacks": {Settings: {"best": np.float64(3.0), "scores": np.arange(3)}},
    "path": Path("/"),
    "set": {1, frozenset([2])},
    "losses": collections.defaultdict(list, a=[1]),
    "history": collections.deque([1.0, 2.0], maxlen=3),
    "random": np.random.default_rng(0),
    "optimizer": torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]).state_dict(),
}


def test_objects_of_a_training_program_become_inert_stubs(path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    content = load_checkpoint(saved(path, {**TRAINING_STATE, "state_dict": {"w": torch.ones(2)}}))
    assert set(torch.serialization.get_safe_globals()) == before
    assert torch.equal(content["state_dict"]["w"], torch.ones(2))
    assert not_plain(content["hyper_parameters"]) == "a argparse.Namespace"
    for stub in (content["hyper_parameters"], content["path"], content["losses"]):
        assert not callable(stub)
        assert not vars(stub)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda: torch.eye(2).to_sparse(), "a sparse or nested tensor"),
        (
            lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "a tensor of torch.qint8",
        ),
        (lambda: torch.ones(2, dtype=torch.complex64), "a tensor of torch.complex64"),
        (lambda: torch.ones(2, device="meta"), "a tensor on device meta"),
        (lambda: torch.ones(1).expand(9), "a tensor of shape (9,), larger than its data"),
        (lambda: 3, "a int"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_value_that_is_not_a_tensor_is_described(path: Path, value: Any, words: str) -> None:
    found = load_checkpoint(saved(path, {"w": value()}))["w"]
    assert str(not_plain(found)).startswith(words)


@pytest.mark.parametrize("value", [torch.ones(2).as_subclass(Subclass), Meters([1])])
def test_classes_that_no_stub_can_replace_are_named(path: Path, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"not loaded: .*{type(value).__name__}"):
        load_checkpoint(saved(path, {"w": torch.ones(1), "x": value}))


def touch(path: Path) -> Calls:
    return Calls(os.system, f"touch {path}")


ATTACKS: dict[str, tuple[Callable[[Path], Calls], str | None]] = {
    "os.system": (touch, "posix.system"),
    "eval": (lambda path: Calls(eval, f"open({str(path)!r}, 'w').close()"), "builtins.eval"),
    "exec": (lambda path: Calls(exec, f"open({str(path)!r}, 'w').close()"), "builtins.exec"),
    "a nested pickle": (lambda path: Calls(pickle.loads, pickle.dumps(touch(path))), None),
    "a nested checkpoint": (
        lambda path: Calls(
            torch.storage._load_from_bytes, saved(path.with_suffix(".pt"), touch(path)).read_bytes()
        ),
        None,
    ),
}
"""By what they run: an object that touches a path, and the global that the message names. A stub
stands in for a function that only unpickles."""


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_code_in_a_checkpoint_never_runs(path: Path, touched: Path, attack: str) -> None:
    attacker, name = ATTACKS[attack]
    saved(path, {"w": torch.ones(1), "callbacks": [(attacker(touched),)]})
    if name is None:
        assert not callable(load_checkpoint(path)["callbacks"][0][0])
    else:
        with pytest.raises(ConfigError, match=rf"m\.ckpt contains code .*\({name}\)"):
            load_checkpoint(path)
    assert not touched.exists()
    with contextlib.suppress(pickle.UnpicklingError):  # a nested torch.load is weights only
        torch.load(path, weights_only=False)
    assert touched.exists() or attack == "a nested checkpoint", "the attack does nothing anyway"


RUN = b"S'touch TOUCHED'\n"
GETATTR = b"cbuiltins\ngetattr\n"
OPCODES = {
    "REDUCE": b"cos\nsystem\n(" + RUN + b"tR.",
    "INST": b"(" + RUN + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + RUN + b"o.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + RUN + b"\x85R.",
    "getattr": GETATTR + b"(" + GETATTR + b"(cos\npath\nS'os'\ntRS'system'\ntR(" + RUN + b"tR.",
}


@pytest.mark.parametrize("opcode", OPCODES)
def test_no_opcode_reaches_a_function(path: Path, touched: Path, opcode: str) -> None:
    pickled = OPCODES[opcode].replace(b"TOUCHED", str(touched).encode())
    with pytest.raises(ConfigError, match=r"contains code|cannot be read"):
        load_checkpoint(archive(path, pickled))
    assert not touched.exists()
    pickle.loads(pickled)
    assert touched.exists(), "the pickle does nothing anyway"


def test_a_stub_cannot_be_called_from_the_pickle(path: Path) -> None:
    # builtins.getattr(...) is a stub. Calling what it returned is an error.
    pickled = b"\x80\x02cbuiltins\ngetattr\n)R)R."
    with pytest.raises(ConfigError, match="call reduce for unrecognized function"):
        load_checkpoint(archive(path, pickled))


def tensor_pickle(key: str, offset: int, size: Any, stride: Any, num_items: int) -> bytes:
    """The pickle of {"x": a tensor over record ``key``, laid out in this way}."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, *value) if type(value) is list else None

    class Rebuilt:
        def __reduce__(self) -> Any:
            storage = [key, "cpu", num_items]
            arguments: Any = storage, offset, size, stride, False, collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, arguments

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"x": Rebuilt()})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("layout", "sound"),
    [
        (("0", 0, (2, 2), (2, 1), 4), True),
        (("0", 1, (2, 2), (2, 1), 4), False),
        (("0", 0, (5,), (1,), 4), False),
        (("0", 0, (10**12, 4), (0, 1), 4), False),
        (("0", 0, (10**12,), (1,), 10**12), False),
        (("0", -1, (2,), (1,), 4), False),
        (("0", 0, (2,), (-1,), 4), False),
        (("0", 0, (2, 2), (1,), 4), False),
        (("1", 0, (2,), (1,), 4), False),
        (("../data.pkl", 0, (2,), (1,), 4), False),
    ],
)
def test_tensors_outside_their_record_are_rejected(path: Path, layout: Any, sound: bool) -> None:
    archive(path, tensor_pickle(*layout), data_0=bytes(16))
    try:
        problem = not_plain(load_checkpoint(path)["x"])
    except ConfigError:
        problem = "rejected"
    assert (problem is None) == sound


def test_other_kinds_of_file_are_recognized(path: Path) -> None:
    def check(match: str) -> None:
        with pytest.raises(ConfigError, match=rf"{path.name} {match}"):
            load_checkpoint(path)

    check("cannot be read: No such file or directory.*Check the path")
    path.write_bytes(b"hello")
    check(r"is not a torch.save checkpoint \(PyTorch 1.6 or newer\)")
    saved(path, {"x": torch.ones(1)}, _use_new_zipfile_serialization=False)
    check(r"is not a torch.save checkpoint \(PyTorch 1.6 or newer\).*weights_only=True")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    check("is a zip file without a checkpoint")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data.pkl", b"N." * 1000)
    check("is compressed")
    archive(path, b"N.", constants=b"", **{"constants.pkl": b"N."})
    check("is a TorchScript program.*cosmos_dv")


def content_of(path: Path) -> Any:
    """The weights of a checkpoint, or None where the project's own error is raised."""
    try:
        content = load_checkpoint(path)
    except ConfigError as error:
        if str(path) not in str(error):
            raise
        return None
    weights = content["state_dict"]["w"]
    assert not_plain(weights) is None
    return weights.tolist()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_loads_the_same_weights_or_is_rejected(path: Path, legacy: bool) -> None:
    content = {"state_dict": {"w": torch.arange(4)}, "epoch": 3, "hparams": argparse.Namespace()}
    saved(path, content, _use_new_zipfile_serialization=not legacy)
    whole, rng = path.read_bytes(), random.Random(0)
    for at in range(0, len(whole), 11 if legacy else 1):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert content_of(path) in (None, [0, 1, 2, 3]), at
        if at % 13 == 0:
            path.write_bytes(whole[:at])
            assert content_of(path) is None, at


def test_a_flipped_bit_in_the_name_of_a_record_is_rejected(path: Path) -> None:
    data = bytearray(saved(path, {"state_dict": {"w": torch.ones(4)}}).read_bytes())
    data[data.index(b"byteorder")] ^= 0x40  # in the record's own header, not in the directory
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"m\.ckpt is damaged in m/byteorder"):
        load_checkpoint(path)


def test_a_damaged_pickle_with_right_checksums_is_rejected_or_loads(path: Path) -> None:
    saved(path, {"w": torch.ones(4), "hparams": argparse.Namespace(a=1)})
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    (name,) = (name for name in records if name.endswith("/data.pkl"))
    rng = random.Random(0)
    for at in range(len(records[name])):
        damaged = bytearray(records[name])
        damaged[at] = rng.randrange(256)
        with zipfile.ZipFile(path, "w") as file:
            for record, data in {**records, name: bytes(damaged)}.items():
                file.writestr(record, data)
        with contextlib.suppress(ConfigError):
            load_checkpoint(path)
