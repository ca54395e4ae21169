"""Files of ``torch.save``, read without torch and without running anything that is in them.

Such a file is a pickle, and to unpickle is to run a program: a checkpoint from a stranger can do
to this machine whatever its author likes. Here only tensors and plain containers come out of it.
Every other class or function that it names is replaced by a placeholder that does nothing.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from tokpipe.errors import ConfigError
from tokpipe.formats.tensor_file import ITEM_BYTES, TensorInfo

MAX_PICKLE_BYTES = 512 * 2**20
"""Without the tensors, which are beside it: far more than any checkpoint has."""
PIECE_BYTES = 16 * 2**20

_TYPES = {
    "float64": "F64", "double": "F64", "float32": "F32", "float": "F32", "float16": "F16",
    "half": "F16", "bfloat16": "BF16", "int64": "I64", "long": "I64", "int32": "I32", "int": "I32",
    "int16": "I16", "short": "I16", "int8": "I8", "uint8": "U8", "uint16": "U16", "uint32": "U32",
    "uint64": "U64", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
"""From names of dtypes in torch to those of safetensors."""
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "UntypedStorage": "U8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that is still in the file: a view of one of its records."""

    record: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(self.dtype, self.shape)


class Placeholder:
    """Stands for an object of a class that is not taken over, and swallows all that is done to it.

    ``described`` says what it stands for.
    """

    described = "an object"

    def __new__(cls, *args: Any, **kwargs: Any) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class TorchFile(AbstractContextManager["TorchFile"]):
    """An open file of ``torch.save``.

    Raises:
        ConfigError: it is none, is damaged, or is of a kind that is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise self._unusable(
                f"is no file of torch.save as PyTorch 1.6 and newer write it ({error})",
                "Save an older one again by torch.save(torch.load(path, weights_only=True), new), "
                "and copy it again if it was cut short",
            ) from error
        try:
            self.content = self._read()
        except BaseException:
            self._archive.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._archive.close()

    def data_of(self, tensor: StoredTensor) -> Iterator[memoryview | bytes]:
        """Yield a tensor's bytes, contiguous and little-endian, in pieces.

        A tensor that lies in one piece in the file needs the memory of a piece; another that of
        its record.
        """
        try:
            yield from self._pieces(tensor)
        except (zipfile.BadZipFile, EOFError) as error:
            raise self._unusable(
                f"is damaged in {tensor.record}: {error}", "Copy it again"
            ) from error

    def _pieces(self, tensor: StoredTensor) -> Iterator[memoryview | bytes]:
        item = ITEM_BYTES[tensor.dtype]
        with self._archive.open(tensor.record) as file:
            if tensor.strides != _contiguous(tensor.shape):
                whole = np.frombuffer(file.read(), dtype=f"V{item}")[tensor.offset :]
                strides = [stride * item for stride in tensor.strides]
                view = np.lib.stride_tricks.as_strided(whole, tensor.shape, strides)
                yield np.ascontiguousarray(view).tobytes()
                return
            file.seek(tensor.offset * item)
            left = tensor.info.size_bytes
            while left:
                piece = file.read(min(left, PIECE_BYTES))
                if not piece:
                    raise EOFError("it is shorter than it says")
                left -= len(piece)
                yield piece

    def _read(self) -> Any:
        members = {info.filename: info for info in self._archive.infolist()}
        pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise self._unusable("is a zip file, but none of torch.save", "Name a checkpoint")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise self._unusable(
                "is a TorchScript program, which is used as it is",
                "Name it as the weights of a tokenizer of kind cosmos_dv",
            )
        order = members.get(f"{folder}byteorder")
        if order is not None and self._archive.read(order) != b"little":
            raise self._unusable("was written on a big-endian machine", "Save it on another")
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise self._unusable("is compressed, as torch.save never does", "Save it again")
        if members[pickles[0]].file_size > MAX_PICKLE_BYTES:
            raise self._unusable(
                f"has {members[pickles[0]].file_size:,} bytes beside its tensors, too many to read",
                "Save the state_dict alone",
            )
        sizes = {name: info.file_size for name, info in members.items()}
        try:
            data = self._archive.read(pickles[0])
            return _Unpickler(io.BytesIO(data), f"{folder}data/", sizes).load()
        except Exception as error:  # a malformed pickle can fail in any way
            raise self._unusable(
                f"cannot be read: {type(error).__name__}: {error}",
                "Copy it again; if it stays so, save its state_dict alone",
            ) from error

    def _unusable(self, problem: str, remedy: str) -> ConfigError:
        return ConfigError(
            f"{self.path}: {problem}. There are no weights to take from it. {remedy}"
        )


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


@dataclass(frozen=True, slots=True)
class _Storage:
    """A record of the file, and what type its items have."""

    record: str
    dtype: str
    size_bytes: int


class _Call:
    """A function that a pickle may call. Nothing can be set on it, as could be on a function."""

    __slots__ = ("call",)
    call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "call", call)

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"it sets {name!r} of a function")


@dataclass(frozen=True, slots=True)
class _Name:
    """A type of items that a pickle names."""

    dtype: str


# The one in Python: that in C reserves as much memory as a number in the file asks for.
_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):  # type: ignore[misc]
    """Builds tensors' descriptions and plain containers, and placeholders for all else."""

    def __init__(self, file: IO[bytes], folder: str, sizes: dict[str, int]) -> None:
        super().__init__(file)
        self._folder = folder
        self._sizes = sizes

    def find_class(self, module: str, name: str) -> Any:
        """Never imports: what is known stands here, and the rest becomes a placeholder."""
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if module == "torch._utils":
            if name == "_rebuild_tensor_v2":
                return _Call(_tensor_v2)
            if name == "_rebuild_tensor_v3":
                return _Call(_tensor_v3)
            if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
                return _Call(lambda data, *_: data)
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Name(_STORAGES[name])
        if module == "torch" and name in _TYPES:
            return _Name(_TYPES[name])
        if module == "torch" and name == "Size":
            return tuple
        return type("Placeholder", (Placeholder,), {"described": f"a {module}.{name}"})

    def persistent_load(self, saved_id: Any) -> _Storage:
        """('storage', type, key, device, number of items) -> the record of that key."""
        kind, dtype, key, _, _ = saved_id
        if kind != "storage" or not isinstance(dtype, _Name) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"it refers to {kind!r} of {type(dtype).__name__}")
        record = f"{self._folder}{key}"
        if record not in self._sizes:
            raise pickle.UnpicklingError(f"it has no record {record}")
        return _Storage(record, dtype.dtype, self._sizes[record])


def _tensor_v2(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
    return _tensor(storage, offset, size, stride, None)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    return _tensor(storage, offset, size, stride, dtype)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: Any) -> StoredTensor:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers):
        raise pickle.UnpicklingError("it describes a tensor in a way that torch.save does not")
    kind = dtype.dtype if isinstance(dtype, _Name) else storage.dtype
    shape, strides = tuple(size), tuple(stride)
    tensor = StoredTensor(storage.record, kind, shape, strides, offset)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    count = math.prod(shape)
    room = storage.size_bytes // ITEM_BYTES[kind]
    # Not more values than there are bytes for: an expanded tensor could be of any size.
    if count and (last >= room or count > room):
        raise pickle.UnpicklingError(
            f"{storage.record} has room for {room} items, and a tensor of {shape} lies in it"
        )
    return tensor
