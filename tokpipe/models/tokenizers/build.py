"""From a tokenizer's config and the bytes of its weights to the tokenizer."""

from __future__ import annotations

from tokpipe.config.tokenizer import TokenizerConfig
from tokpipe.errors import ConfigError
from tokpipe.models.tokenizers.base import VideoTokenizer
from tokpipe.models.tokenizers.native import build_native


def build_tokenizer(
    config: TokenizerConfig,
    weights: bytes | None,
    *,
    with_decoder: bool = False,
    decoder_weights: bytes | None = None,
) -> VideoTokenizer:
    """Return the tokenizer of ``config`` on the CPU, in float32 and eval mode.

    ``weights`` are the bytes of the file that ``config.weights`` names, with exactly the keys of
    the model. Without them the parameters of a ``native`` tokenizer are random, each a pure
    function of ``config.seed`` and its key. The global random state is left as it was.

    Raises:
        ConfigError: weights that do not fit the model, or that the config names but are not given.
    """
    if config.weights is not None and weights is None:
        raise ConfigError(
            f"tokenizer.weights names {config.weights}, but its bytes were not given; random "
            "weights in their place would give meaningless codes"
        )
    tokenizer = build_native(config, weights, with_decoder=with_decoder)
    return tokenizer.eval().requires_grad_(False)
