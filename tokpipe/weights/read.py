"""Reads a tokenizer's weights and computes the hash that identifies its codes."""

import hashlib
import json
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tokpipe.config.checkpoint import BUILTIN, builtin_path
from tokpipe.config.job import StoreOptions
from tokpipe.config.published import check_keys
from tokpipe.config.tokenizer import CosmosDVConfig, NativeConfig, TokenizerConfig
from tokpipe.errors import ConfigError, NotFound
from tokpipe.storage import Store
from tokpipe.storage.client import client_of
from tokpipe.storage.hub import local_copy

Tensors = Mapping[str, Mapping[str, Any]]
"""By name: ``dtype`` (as safetensors spells it), ``shape`` and ``data`` (little-endian bytes)."""


@dataclass(frozen=True, slots=True)
class TokenizerWeights:
    """What ``build_tokenizer`` needs, and the hash that goes into the fingerprint."""

    hash: str
    """Covers only what encoding needs, so training a decoder further changes no fingerprint."""
    encoding: bytes | None  # The file's bytes, or a file of only the tensors for encoding
    decoding: bytes | None = None  # The decoder, for tokenizers that keep it in a separate file


def read_weights(
    config: TokenizerConfig, options: StoreOptions, *, with_decoder: bool = False
) -> TokenizerWeights:
    """Fetch a tokenizer's weights; without ``with_decoder``, keep only what encoding needs."""
    if config.weights is None:
        seed = f"random, seed {config.seed}" if isinstance(config, NativeConfig) else "none"
        return TokenizerWeights(seed, None)
    data = read_object(config.weights, options, "tokenizer.weights")
    decoding = None
    if with_decoder and isinstance(config, CosmosDVConfig) and config.decoder_weights is not None:
        decoding = read_object(config.decoder_weights, options, "tokenizer.decoder_weights")
    if not config.decoder_keys:
        return TokenizerWeights("sha256 " + hashlib.sha256(data).hexdigest(), data, decoding)
    tensors = encoding_tensors(config.weights, data, config)
    kept = data if with_decoder else _to_safetensors(tensors)
    return TokenizerWeights("sha256 " + tensors_sha256(tensors), kept, decoding)


def encoding_tensors(uri: str, data: bytes, config: TokenizerConfig) -> Tensors:
    """Return the tensors of a safetensors file that do not belong to the decoder."""
    import safetensors  # jobs are checked without it

    try:
        tensors: list[tuple[str, Any]] = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise ConfigError(
            f"{uri} is not a complete safetensors file ({error}). The tokenizer needs its weights. "
            "Run `tokpipe convert` on other kinds of checkpoint; copy this file again if it was "
            "cut short"
        ) from error
    check_keys(config, [name for name, _ in tensors], uri)
    return {name: one for name, one in tensors if not name.startswith(config.decoder_keys)}


def tensors_sha256(tensors: Tensors) -> str:
    """Hash names, types, shapes and values, in hex. Their order in the file does not matter."""
    names = sorted(tensors)
    listed = [[name, tensors[name]["dtype"], tensors[name]["shape"]] for name in names]
    digest = hashlib.sha256(json.dumps(listed).encode())
    for name in names:
        digest.update(tensors[name]["data"])
    return digest.hexdigest()


def _to_safetensors(tensors: Tensors) -> bytes:
    # The library writes numpy or torch arrays only. The one knows no bfloat16, and the other
    # takes seconds to import.
    header, end = {}, 0
    for name in sorted(tensors):
        start, end = end, end + len(tensors[name]["data"])
        header[name] = {**tensors[name], "data_offsets": [start, end]}
        del header[name]["data"]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(tensors[name]["data"] for name in header)


def read_object(uri: str, options: StoreOptions, setting: str = "") -> bytes:
    """Return the bytes at ``uri``, in any store or ``builtin://``; errors name ``setting``."""
    try:
        store, key = _locate(uri, options)
        return store.get(key)
    except NotFound as error:
        raise _missing(uri, setting) from error


def find_weights(uri: str, options: StoreOptions) -> int:
    """Return the size of ``tokenizer.weights`` in bytes; ConfigError if there is no file."""
    with suppress(NotFound):
        store, key = _locate(uri, options)
        if (size := store.size(key)) is not None:
            return size
    raise _missing(uri, "tokenizer.weights")


def _locate(uri: str, options: StoreOptions) -> tuple[Store, str]:
    if uri.startswith(BUILTIN):
        uri = str(builtin_path(uri))
    folder, slash, key = local_copy(client_of(uri, options), uri).rpartition("/")
    return Store(folder if slash else ".", options), key


def _missing(uri: str, setting: str) -> ConfigError:
    if not setting:
        return ConfigError(f"no file at {uri}")  # the caller says what to do
    return ConfigError(
        f"{setting}: no file at {uri}. The tokenizer needs it. Put the file there, or correct the "
        "URI"
    )
