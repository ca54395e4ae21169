"""A tokenizer's weights: where they are, their bytes, and the hash that stands for their codes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from tokpipe.config.checkpoint import BUILTIN, builtin_path
from tokpipe.config.job import StoreOptions
from tokpipe.config.tokenizer import CosmosDVConfig, NativeConfig, TokenizerConfig
from tokpipe.errors import ConfigError, NotFound
from tokpipe.formats.tensor_file import TensorFile
from tokpipe.storage import Store, open_store


@dataclass(frozen=True, slots=True)
class TokenizerWeights:
    """What ``build_tokenizer`` takes, and what the fingerprint holds."""

    hash: str
    """Of what encoding needs, so that a decoder trained further changes no fingerprint."""
    encoding: bytes | None
    """The file's bytes, or those of its tensors that were asked for."""
    decoding: bytes | None = None
    """Bytes of the decoder, for tokenizers that keep it in a file of its own."""


def read_weights(
    config: TokenizerConfig, options: StoreOptions, *, with_decoder: bool = False
) -> TokenizerWeights:
    """Fetch a tokenizer's weights; without ``with_decoder``, only what encoding needs is kept.

    Raises:
        ConfigError: there is nothing where the config says, or no whole file.
        StorageError: the store kept failing.
    """
    if config.weights is None:
        seed = f"random, seed {config.seed}" if isinstance(config, NativeConfig) else "none"
        return TokenizerWeights(seed, None)
    data = read_object(config.weights, options, "tokenizer.weights")
    decoding = None
    if with_decoder and isinstance(config, CosmosDVConfig) and config.decoder_weights is not None:
        decoding = read_object(config.decoder_weights, options, "tokenizer.decoder_weights")
    if not config.decoder_keys:
        return TokenizerWeights("sha256 " + hashlib.sha256(data).hexdigest(), data, decoding)
    encoding = TensorFile.parse(config.weights, data).without(config.decoder_keys)
    kept = data if with_decoder else encoding.to_bytes()
    return TokenizerWeights("sha256 " + encoding.sha256(), kept, decoding)


def read_object(uri: str, options: StoreOptions, setting: str = "") -> bytes:
    """Return the bytes at ``uri``, in any store or ``builtin://``; ``setting`` names it.

    Raises:
        ConfigError: there is nothing at ``uri``.
        StorageError: the store kept failing.
    """
    store, key = _locate(uri, options)
    try:
        return store.get(key)
    except NotFound as error:
        raise _nothing(uri, setting) from error


def find_weights(uri: str, options: StoreOptions) -> int:
    """Return how many bytes ``tokenizer.weights`` has.

    Raises:
        ConfigError: there is nothing at ``uri``.
    """
    store, key = _locate(uri, options)
    size = store.size(key)
    if size is None:
        raise _nothing(uri, "tokenizer.weights")
    return size


def _locate(uri: str, options: StoreOptions) -> tuple[Store, str]:
    if uri.startswith(BUILTIN):
        uri = str(builtin_path(uri))
    folder, _, key = uri.rpartition("/")
    return open_store(folder, options), key


def _nothing(uri: str, setting: str) -> ConfigError:
    where = f"{setting}: " if setting else ""
    return ConfigError(
        f"{where}there is nothing at {uri}. Without it there is no tokenizer, and so no codes; "
        "put the file there, or correct the URI"
    )
