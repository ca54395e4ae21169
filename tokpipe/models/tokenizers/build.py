"""Builds a tokenizer from its config and the bytes of its weights."""

from collections.abc import Callable

import torch

from tokpipe.config.tokenizer import (
    CosmosDVConfig,
    CustomConfig,
    Emu3Config,
    MoVQGANConfig,
    NativeConfig,
    TokenizerConfig,
)
from tokpipe.errors import ConfigError
from tokpipe.models.tokenizers.base import VideoTokenizer
from tokpipe.models.tokenizers.cosmos import build_cosmos_dv
from tokpipe.models.tokenizers.custom import build_custom
from tokpipe.models.tokenizers.emu3 import build_emu3
from tokpipe.models.tokenizers.movqgan import build_movqgan
from tokpipe.models.tokenizers.native import build_native

_BUILDERS: dict[type[TokenizerConfig], Callable[..., VideoTokenizer]] = {
    NativeConfig: build_native,
    MoVQGANConfig: build_movqgan,
    Emu3Config: build_emu3,
    CosmosDVConfig: build_cosmos_dv,
    CustomConfig: build_custom,
}


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

    Raises:
        ConfigError: weights that do not fit the model, or whose bytes are missing.
    """
    if config.weights is not None and weights is None:
        raise ConfigError(
            f"tokenizer.weights names {config.weights}, but its bytes were not passed; random "
            "weights would make meaningless codes"
        )
    # Layers draw their initial values from the global generator.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        more = {"decoder_weights": decoder_weights} if isinstance(config, CosmosDVConfig) else {}
        build = _BUILDERS[type(config)]
        tokenizer = build(config, weights, with_decoder=with_decoder, **more)
    return tokenizer.eval().requires_grad_(False)
