"""Tokenizers that a job names by the import path of their class."""

from __future__ import annotations

import importlib
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tokpipe.config.tokenizer import CustomConfig
from tokpipe.errors import ConfigError
from tokpipe.models.published import load_published
from tokpipe.models.streaming import StreamState
from tokpipe.models.tokenizers.base import VideoTokenizer
from tokpipe.models.tokenizers.probe import probe
from tokpipe.models.tokenizers.weights import read_safetensors


@runtime_checkable
class Encodes(Protocol):
    """What a class must do, beside being an ``nn.Module``: pixels to codes."""

    def encode(self, x: Tensor) -> Tensor:
        """Floats in the declared layout and range -> (B, t, h, w) codes of any integer type.

        Under layout ``BCHW``, which has B * T frames in place of B clips, (B * T, h, w).
        """


@runtime_checkable
class Decodes(Protocol):
    """What it must do to be decoded: codes to pixels."""

    def decode(self, codes: Tensor) -> Tensor:
        """(B, t, h, w) int64, or (B * T, h, w) -> floats in the declared layout and range."""


@runtime_checkable
class EncodesPieces(Protocol):
    """What it must do to be streamed, unless its layout is ``BCHW``."""

    def encode_piece(
        self, x: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The next frames of a clip, and the state returned before them -> codes and state."""


@runtime_checkable
class DecodesPieces(Protocol):
    """What it must do to be decoded piece by piece, unless its layout is ``BCHW``."""

    def decode_piece(
        self, codes: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The next codes of a clip, and the state returned before them -> floats and state."""


@runtime_checkable
class ComputesIn(Protocol):
    """What it must do to compute in another type than float32."""

    def compute_in(self, dtype: torch.dtype) -> None:
        """Cast what may be cast. ``encode`` is given this type from then on."""


class CustomTokenizer(VideoTokenizer):
    """A class of someone else's, held to what was declared of it. Its keys are below ``model.``."""

    def __init__(self, config: CustomConfig, model: nn.Module) -> None:
        super().__init__(config.traits)
        self.name = config.implementation
        self.model = model

    def _encode(self, x: Tensor) -> Tensor:
        assert isinstance(self.model, Encodes)
        return self.model.encode(x)

    def _decode(self, codes: Tensor) -> Tensor:
        if not isinstance(self.model, Decodes):
            raise ValueError(f"{self.name} has no method decode(codes), so it gives no pixels")
        return self.model.decode(codes)

    def _encode_piece(self, x: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        if not isinstance(self.model, EncodesPieces):
            return super()._encode_piece(x, state)
        codes, tensors = self.model.encode_piece(x, self._tensors(state))
        return codes, StreamState(self.name, tuple(tensors))

    def _decode_piece(self, codes: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        if not isinstance(self.model, DecodesPieces):
            if self.traits.layout == "BCHW":
                return super()._decode_piece(codes, state)
            raise ValueError(f"{self.name} has no method decode_piece(codes, state)")
        floats, tensors = self.model.decode_piece(codes, self._tensors(state))
        return floats, StreamState(self.name, tuple(tensors))

    def _tensors(self, state: StreamState | None) -> tuple[Tensor, ...] | None:
        if state is None:
            return None
        if state.network != self.name:
            raise ValueError(
                f"the state was made by {state.network}, and given to {self.name}, to which it "
                "means nothing: pass the one that it returned for the piece before"
            )
        return state.tensors

    def _cast(self, dtype: torch.dtype) -> None:
        if isinstance(self.model, ComputesIn):
            self.model.compute_in(dtype)
        elif dtype != torch.float32:
            raise ConfigError(
                f"encode.dtype: {self.name} has no method compute_in(dtype), so nothing tells "
                f"which of its parts may be rounded to {dtype}: give it one, or use float32"
            )


def build_custom(
    config: CustomConfig, weights: bytes | None, *, with_decoder: bool
) -> CustomTokenizer:
    """Build on the CPU and try it out; see ``build_tokenizer``."""
    what = f"tokenizer.implementation {config.implementation}"
    kind = _imported(config.implementation, what)
    _check_methods(kind, config, what, with_decoder=with_decoder)
    try:
        model = kind(**config.arguments)
    except Exception as error:  # the code is someone else's: it may raise anything
        raise ConfigError(
            f"{what}: could not be built with tokenizer.arguments {config.arguments}: "
            f"{type(error).__name__}: {error}. Correct the arguments, or the class"
        ) from error
    if weights is not None:
        source = config.weights or "tokenizer.weights"
        load_published(model, read_safetensors(weights, source), source=source)
    tokenizer = CustomTokenizer(config, model)
    tokenizer.eval()
    probe(tokenizer, what, with_decoder=with_decoder, size=config.probe_size)
    return tokenizer


def _imported(path: str, what: str) -> type[nn.Module]:
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"{what}: {module_name} cannot be imported: {type(error).__name__}: {error}. Every "
            "node that encodes must have it: install it there, or add its folder to PYTHONPATH"
        ) from error
    found: Any = getattr(module, name, None)
    # Checked before it is called: a checkpoint's config names it, and must not name just anything.
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        described = "nothing" if found is None else f"{found!r}"
        raise ConfigError(
            f"{what}: {module_name} has {described} by the name {name}, where a subclass of "
            "torch.nn.Module is needed, which can be moved to a device: correct the path"
        )
    return found


def _check_methods(
    kind: type[nn.Module], config: CustomConfig, what: str, *, with_decoder: bool
) -> None:
    wanted = {"encode": "encode(x)"}
    if with_decoder:
        wanted["decode"] = "decode(codes)"
    if config.traits.why_not_streamable is None and config.traits.layout != "BCHW":
        wanted["encode_piece"] = "encode_piece(x, state), as it is declared to be streamable"
    for method, described in wanted.items():
        if not callable(getattr(kind, method, None)):
            raise ConfigError(
                f"{what}: has no method {described}, which tokpipe calls: add it, or name another "
                "class; docs/tokenizers.md shows one"
            )
