"""Weights of tokenizers: safetensors in memory, loaded strictly."""

from collections.abc import Callable, Mapping

import safetensors
import safetensors.torch
from torch import Tensor, nn

from tokpipe.config.tokenizer import TokenizerConfig
from tokpipe.errors import ConfigError
from tokpipe.models.published import load_published


def load_weights(
    module: nn.Module,
    weights: bytes,
    config: TokenizerConfig,
    *,
    with_decoder: bool,
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict,
) -> None:
    """Fill ``module`` from a safetensors file that has exactly its keys, once renamed.

    Keys that only decoding needs are optional for a module without a decoder.
    """
    source = config.weights or "tokenizer.weights"
    try:
        state: Mapping[str, Tensor] = safetensors.torch.load(weights)
    except safetensors.SafetensorError as error:
        raise ConfigError(
            f"{source} is not a complete safetensors file ({error}). The tokenizer needs its "
            "weights. Run `tokpipe convert` on other kinds of checkpoint; copy this file again if "
            "it was cut short"
        ) from error
    if not with_decoder:
        state = {k: v for k, v in state.items() if not k.startswith(config.decoder_keys)}
    load_published(module, rename(state), source=source)
