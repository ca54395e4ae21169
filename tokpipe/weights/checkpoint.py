"""Reads ``torch.save`` checkpoints without running anything in them.

A checkpoint is a pickle, and unpickling runs a program. ``torch.load(weights_only=True)`` calls
only the functions that build tensors and containers. Training checkpoints also hold objects of
other classes. Each of those becomes an inert stub, so that the weights beside them can be taken.
"""

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokpipe.errors import ConfigError

_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.bool, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8,
}  # fmt: skip

# A stub would make these harmless too. But a checkpoint that calls them is an attack: say so.
_CODE_MODULES = {"os", "posix", "nt", "sys", "subprocess", "importlib", "runpy", "pty", "ctypes"}
_CODE_GLOBALS = {f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__")}


def load_checkpoint(path: Path) -> Any:
    """Return what was saved: plain containers, tensors on the CPU, and stubs named after the
    classes that they replace. Tensors are views of the file, which must not change while in use."""
    _check_archive(path)
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins: list[Any] = [(_stub_for(name), name) for name in unknown]
    except Exception as error:  # a damaged pickle can raise anything
        raise _unreadable(path, error) from error
    code = [
        name
        for name in sorted(unknown)
        if name in _CODE_GLOBALS or name.partition(".")[0] in _CODE_MODULES
    ]
    if code:
        do = "Do not load it elsewhere, and ask its author for the state_dict alone"
        raise _unusable(path, f"contains code that would run on loading ({', '.join(code)})", do)
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a pickle of protocol 3 loads, or raises
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        # torch adds advice to load with weights_only=False, which would run the code.
        raise _unreadable(path, error.__context__ or error, unknown) from error


def not_plain(value: Any) -> str | None:
    """Describe what makes ``value`` unusable as a weight; None for a plain, dense CPU tensor."""
    if isinstance(value, dict):
        return f"a mapping of {len(value)}"
    if type(value) not in (Tensor, torch.nn.Parameter):
        return f"a {type(value).__name__}"
    if value.is_nested or value.layout != torch.strided:
        return f"a sparse or nested tensor ({value.layout})"
    if value.dtype not in _DTYPES:
        return f"a tensor of {value.dtype}"
    if value.device.type != "cpu":
        return f"a tensor on device {value.device}"
    if value.nbytes > value.untyped_storage().nbytes():
        return f"a tensor of shape {tuple(value.shape)}, larger than its data"
    return None


def _check_archive(path: Path) -> None:
    """Check what ``torch.load`` does not: the checksum of each record in the zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            is_program = "constants.pkl" in records
            is_compressed = any(one.compress_type != zipfile.ZIP_STORED for one in records.values())
            broken = None if is_program or is_compressed else archive.testzip()
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}", "Check the path") from error
    except zipfile.BadZipFile as error:
        problem = f"is not a torch.save checkpoint (PyTorch 1.6 or newer): {error}"
        again = "torch.save(torch.load(path, weights_only=True), new_path)"
        do = f"If it was cut short, copy it again. Save an older one again with {again}"
        raise _unusable(path, problem, do) from error
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        raise _unreadable(path, error) from error
    as_program = "Use it unchanged as the weights of a tokenizer of kind cosmos_dv"
    for is_so, problem, remedy in (
        (is_program, "is a TorchScript program", as_program),
        ("data.pkl" not in records, "is a zip file without a checkpoint", "Pass a checkpoint"),
        (is_compressed, "is compressed, as torch.save never does", "Save it again"),
        (broken is not None, f"is damaged in {broken}", "Copy it again"),
    ):
        if is_so:
            raise _unusable(path, problem, remedy)


class _StubType(type):
    """Equals ``dict``: torch's unpickler sets items only on what compares equal to a dict."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is dict

    __hash__ = type.__hash__


class _Stub(metaclass=_StubType):
    """Replaces an object of a class that is not imported. Accepts any state, keeps none."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Stub":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def _stub_for(name: str) -> Any:
    if name == "collections.deque":
        return lambda *_: []  # torch's unpickler appends to lists only
    return _StubType(name, (_Stub,), {})


def _unreadable(path: Path, error: BaseException, unknown: Sequence[str] = ()) -> ConfigError:
    problem = f"cannot be read ({type(error).__name__}: {error})"
    if unknown:
        problem += f"; classes in it that are not loaded: {', '.join(sorted(unknown))}"
    return _unusable(path, problem, "Copy it again, or save only its state_dict")


def _unusable(path: Path, problem: str, remedy: str) -> ConfigError:
    return ConfigError(f"{path} {problem}. No weights can be taken from it. {remedy}")
