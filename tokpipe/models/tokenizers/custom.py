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
from tokpipe.models.tokenizers.base import VideoTokenizer
from tokpipe.models.tokenizers.probe import probe
from tokpipe.models.tokenizers.weights import load_weights


class CustomTokenizer(VideoTokenizer):
    """A user's ``nn.Module``, held to its declared traits. Its keys are below ``model.``.

    docs/tokenizers.md lists the methods that it must have.
    """

    def __init__(self, config: CustomConfig, model: nn.Module) -> None:
        super().__init__(config.traits)
        self.name = config.implementation
        self.model = model

    def _encode(self, x: Tensor) -> Tensor:
        codes: Tensor = self.model.encode(x)  # type: ignore[operator]
        return codes

    def _decode(self, codes: Tensor) -> Tensor:
        if (decode := getattr(self.model, "decode", None)) is None:
            raise ValueError(f"{self.name} has no method decode(codes), so it returns no pixels")
        floats: Tensor = decode(codes)
        return floats

    def _encode_piece(self, x: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        if (encode_piece := getattr(self.model, "encode_piece", None)) is None:
            return super()._encode_piece(x, state)
        codes, tensors = encode_piece(x, self._tensors(state))
        return codes, StreamState(self.name, tuple(tensors))

    def _decode_piece(self, codes: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        if (decode_piece := getattr(self.model, "decode_piece", None)) is None:
            if self.traits.layout == "BCHW":
                return super()._decode_piece(codes, state)
            raise ValueError(f"{self.name} has no method decode_piece(codes, state)")
        floats, tensors = decode_piece(codes, self._tensors(state))
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


def build_custom(
    config: CustomConfig, weights: bytes | None, *, with_decoder: bool
) -> CustomTokenizer:
    """Build on the CPU and probe it; see ``build_tokenizer``."""
    what = f"tokenizer.implementation {config.implementation}"
    kind = _imported(config.implementation, what)
    _check_methods(kind, config, what, with_decoder=with_decoder)
    try:
        model = kind(**config.arguments)
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise ConfigError(
            f"{what}: could not be built with tokenizer.arguments {config.arguments}: "
            f"{type(error).__name__}: {error}. Correct the arguments or the class"
        ) from error
    if weights is not None:
        load_weights(model, weights, config, with_decoder=True)
    tokenizer = CustomTokenizer(config, model)
    tokenizer.eval()
    probe(tokenizer, what, with_decoder=with_decoder, size=config.probe_size)
    return tokenizer


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
    # Checked before it is called: a checkpoint's config must not be able to call just anything.
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        described = "not a class" if found is None else f"{found!r}"
        raise ConfigError(
            f"{what}: {name} in {module_name} is {described}, but must be a subclass of "
            "torch.nn.Module: correct the path"
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


def _check_methods(
    kind: type[nn.Module], config: CustomConfig, what: str, *, with_decoder: bool
) -> None:
    wanted = {"encode": "encode(x)"}
    if with_decoder:
        wanted["decode"] = "decode(codes)"
    if config.traits.why_not_streamable is None and config.traits.layout != "BCHW":
        wanted["encode_piece"] = "encode_piece(x, state), although it is declared streamable"
    for method, described in wanted.items():
        if not callable(getattr(kind, method, None)):
            raise ConfigError(
                f"{what}: has no method {described}: add it, or name another class; "
                "docs/tokenizers.md has an example"
            )
