"""Weights of tokenizers: safetensors in memory, loaded strictly."""

from __future__ import annotations

import safetensors
import safetensors.torch
from torch import Tensor, nn

from tokpipe.config.tokenizer import TokenizerConfig
from tokpipe.errors import ConfigError
from tokpipe.models.published import load_published


def load_weights(
    module: nn.Module, weights: bytes, config: TokenizerConfig, *, with_decoder: bool
) -> None:
    """Fill ``module`` from a safetensors file, of which it must be every key.

    Keys that only decoding needs may be there or not when the module was built without decoder.

    Raises:
        ConfigError: the file is damaged, or does not fit, with the keys that do not.
    """
    source = config.weights or "tokenizer.weights"
    state = read_safetensors(weights, source)
    if not with_decoder:
        state = {k: v for k, v in state.items() if not k.startswith(config.decoder_keys)}
    load_published(module, state, source=source)


def read_safetensors(weights: bytes, source: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; ``source`` is what a message calls it.

    Raises:
        ConfigError: it is no such file, or not a whole one.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(weights)
    except safetensors.SafetensorError as error:
        raise ConfigError(
            f"{source} is not a complete safetensors file ({error}). Without weights there are no "
            "codes. Make other checkpoints into one by `tokpipe convert`, and copy this one again "
            "if it was cut short"
        ) from error
    return tensors
