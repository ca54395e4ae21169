"""Tokenizers: pixels to codes and back, one class for every kind that a job can name."""

from collections.abc import Callable

import torch

from tokpipe.config.tokenizer import (
    CosmosDVConfig,
    CustomConfig,
    Emu3Config,
    NativeConfig,
    TokenizerConfig,
    VidTokConfig,
    VQGANConfig,
)
from tokpipe.errors import ConfigError
from tokpipe.models.tokenizers.base import NOT_FINITE, VideoTokenizer, load_weights
from tokpipe.models.tokenizers.cosmos import CosmosDVTokenizer
from tokpipe.models.tokenizers.custom import CustomTokenizer
from tokpipe.models.tokenizers.native import NativeTokenizer, randomize
from tokpipe.models.tokenizers.vidtok import VidTokTokenizer
from tokpipe.models.tokenizers.vqgan import Emu3Tokenizer, VQGANTokenizer

__all__ = ["NOT_FINITE", "VideoTokenizer", "build_on_meta", "build_tokenizer"]

_KINDS: dict[type[TokenizerConfig], Callable[..., VideoTokenizer]] = {
    NativeConfig: NativeTokenizer,
    VQGANConfig: VQGANTokenizer,
    Emu3Config: Emu3Tokenizer,
    VidTokConfig: VidTokTokenizer,
}
"""Kinds whose weights are one safetensors file, with the keys of their class."""


def build_tokenizer(
    config: TokenizerConfig,
    weights: bytes | None,
    *,
    with_decoder: bool = False,
    decoder_weights: bytes | None = None,
) -> VideoTokenizer:
    """Return the tokenizer of ``config`` on the CPU, in float32 and eval mode.

    ``weights`` are the bytes of the file at ``config.weights``, with exactly the keys of the
    model. Without them a ``native`` tokenizer gets random parameters, each a pure function of
    ``config.seed`` and its key. The global random state does not change.
    """
    if config.weights is not None and weights is None:
        found = f"tokenizer.weights names {config.weights}, but its bytes were not passed"
        raise ConfigError(f"{found}; random weights would make meaningless codes")
    # Layers draw their initial values from the global generator.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        tokenizer: VideoTokenizer
        if isinstance(config, CustomConfig):
            tokenizer = CustomTokenizer(config, weights, with_decoder=with_decoder)
        elif isinstance(config, CosmosDVConfig) and weights is not None:
            tokenizer = CosmosDVTokenizer(
                config, weights, with_decoder=with_decoder, decoder_weights=decoder_weights
            )
        else:
            tokenizer = _KINDS[type(config)](config, with_decoder=with_decoder).float()
            if weights is None:
                assert isinstance(config, NativeConfig), "all other kinds name their weights"
                randomize(tokenizer, config.seed)
            else:
                rename = tokenizer.renamed
                load_weights(tokenizer, weights, config, with_decoder=with_decoder, rename=rename)
    return tokenizer.eval().requires_grad_(False)


def build_on_meta(config: TokenizerConfig, dtype: torch.dtype) -> VideoTokenizer:
    """The encoder and quantizer of ``config`` in ``dtype``, with shapes alone (device "meta").

    Raises ConfigError for a program: custom code may do anything, and TorchScript needs values.
    """
    kind = _KINDS.get(type(config))
    if kind is None:
        raise ConfigError(f"a tokenizer of kind {config.kind} is a program")
    with torch.device("meta"):
        tokenizer = kind(config, with_decoder=False).float()
    tokenizer.compute_in(dtype)
    return tokenizer.eval().requires_grad_(False)
