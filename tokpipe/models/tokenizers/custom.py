"""Tokenizers that a job names by the import path of their class."""

import importlib.util
import symtable
from importlib.machinery import PathFinder
from typing import Any

import torch
from torch import Tensor, nn

from tokpipe.config.tokenizer import CustomConfig
from tokpipe.errors import ConfigError
from tokpipe.models.streaming import StreamState
from tokpipe.models.tokenizers.base import VideoTokenizer, load_weights
from tokpipe.models.tokenizers.probe import probe


class CustomTokenizer(VideoTokenizer):
    """A user's ``nn.Module`` with the methods of docs/tokenizers.md, probed and held to its
    declared traits. Keys are below ``model.``."""

    def __init__(self, config: CustomConfig, weights: bytes | None, *, with_decoder: bool) -> None:
        super().__init__(config.traits)
        self.name = config.implementation
        what = f"tokenizer.implementation {self.name}"
        kind = _imported(self.name, what)
        self.model: Any
        try:
            self.model = kind(**config.arguments)
        except (Exception, SystemExit) as error:  # user code may raise anything
            raise ConfigError(
                f"{what}: could not be built with tokenizer.arguments {config.arguments}: "
                f"{type(error).__name__}: {error}. Correct the arguments or the class"
            ) from error
        if weights is not None:
            load_weights(self.model, weights, config, with_decoder=True)
        self.eval()
        probe(self, what, with_decoder=with_decoder, size=config.probe_size)

    def _encode(self, x: Tensor) -> Tensor:
        return self.model.encode(x)

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes)

    def _encode_piece(self, x: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        if self.traits.layout == "BCHW" and not hasattr(self.model, "encode_piece"):
            return super()._encode_piece(x, state)
        codes, tensors = self.model.encode_piece(x, self._tensors(state))
        return codes, StreamState(self.name, tuple(tensors))

    def _decode_piece(self, codes: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        if self.traits.layout == "BCHW" and not hasattr(self.model, "decode_piece"):
            return super()._decode_piece(codes, state)
        floats, tensors = self.model.decode_piece(codes, self._tensors(state))
        return floats, StreamState(self.name, tuple(tensors))

    def _tensors(self, state: StreamState | None) -> tuple[Tensor, ...] | None:
        if state is None:
            return None
        state.check(self.name)
        return state.tensors

    def _cast(self, dtype: torch.dtype) -> None:
        if (compute_in := getattr(self.model, "compute_in", None)) is not None:
            compute_in(dtype)
        elif dtype != torch.float32:
            raise ConfigError(
                f"encode.dtype: {self.name} has no method compute_in(dtype), so it is unknown "
                f"which of its parts may be rounded to {dtype}: add one, or use float32"
            )


def _imported(path: str, what: str) -> type[nn.Module]:
    module_name, _, name = path.partition(":")
    try:
        # Without getattr(), which lets a module import others on demand.
        is_known = _may_define(module_name, name)
        found: Any = vars(importlib.import_module(module_name)).get(name) if is_known else None
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{what}: {module_name} cannot be imported: {type(error).__name__}: {error}. Install "
            "it on every node that encodes, or add its folder to PYTHONPATH there"
        ) from error
    # Checked before it is called: a config must not be able to call just anything.
    is_module = isinstance(found, type) and issubclass(found, nn.Module)
    if not (is_module and hasattr(found, "encode")):
        described = "not a class" if found is None else f"{found!r}"
        raise ConfigError(
            f"{what}: {name} in {module_name} is {described}, but must be a subclass of "
            "torch.nn.Module with a method encode(x): correct the path or the class"
        )
    return found


def _may_define(module_name: str, name: str) -> bool:
    """Whether a module's source can bind ``name`` to a class. Runs nothing of it."""
    top, *parts = module_name.split(".")
    spec = importlib.util.find_spec(top)
    for part in parts:  # find_spec() of a dotted name would import the packages above
        places = None if spec is None else spec.submodule_search_locations
        spec = None if places is None else PathFinder.find_spec(part, [*places])
    if spec is None:
        raise ModuleNotFoundError(f"No module named {module_name!r}")
    source = getattr(spec.loader, "get_source", lambda _: None)(spec.name)
    if source is None:  # compiled
        return True
    table = symtable.symtable(source, module_name, "exec")
    if name not in table.get_identifiers():
        return "import *" in source
    return not any(one.get_type() == "function" for one in table.lookup(name).get_namespaces())
