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
from tokpipe.config.published import tensors_of
from tokpipe.config.tokenizer import NativeConfig, TokenizerConfig
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
    data = read_object(config.weights, options, "tokenizer.weights: ")
    decoder = getattr(config, "decoder_weights", None) if with_decoder else None
    decoding = decoder and read_object(decoder, options, "tokenizer.decoder_weights: ")
    if not config.decoder_keys:
        return TokenizerWeights("sha256 " + hashlib.sha256(data).hexdigest(), data, decoding)
    tensors = tensors_of(config, data, config.weights, with_decoder=False)
    kept = data if with_decoder else _to_safetensors(tensors)
    return TokenizerWeights("sha256 " + tensors_sha256(tensors), kept, decoding)


def tensors_sha256(tensors: Tensors) -> str:
    """Hash names, types, shapes and values, in hex. Their order in the file does not matter."""
    names = sorted(tensors)
    listed = [[name, tensors[name]["dtype"], tensors[name]["shape"]] for name in names]
    digest = hashlib.sha256(json.dumps(listed).encode())
    for name in names:
        digest.update(tensors[name]["data"])
    return digest.hexdigest()


def _to_safetensors(tensors: Tensors) -> bytes:
    # safetensors writes arrays of numpy, which has no bfloat16, or torch, which is slow to import.
    header, end = {}, 0
    for name in sorted(tensors):
        start, end = end, end + len(tensors[name]["data"])
        header[name] = {**tensors[name], "data_offsets": [start, end]}
        del header[name]["data"]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(tensors[name]["data"] for name in header)


def read_object(uri: str, options: StoreOptions, setting: str = "") -> bytes:
    """Return the bytes at ``uri``, in any store or ``builtin://``."""
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
    raise _missing(uri, "tokenizer.weights: ")


def _locate(uri: str, options: StoreOptions) -> tuple[Store, str]:
    if uri.startswith(BUILTIN):
        uri = str(builtin_path(uri))
    folder, slash, key = local_copy(client_of(uri, options), uri).rpartition("/")
    return Store(folder if slash else ".", options), key


def _missing(uri: str, setting: str) -> ConfigError:
    do = "Put the file there, or correct the URI"
    return ConfigError(f"{setting}no file at {uri}. The tokenizer needs it. {do}")
