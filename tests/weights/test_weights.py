"""What is fetched of a tokenizer's weights, and what its hash covers."""

import hashlib
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tokpipe.config.job import StoreOptions
from tokpipe.config.native_parts import Encoder3DConfig, FSQConfig, Movq3DConfig
from tokpipe.config.tokenizer import CosmosDVConfig, NativeConfig
from tokpipe.errors import ConfigError
from tokpipe.weights.read import find_weights, read_object, read_weights

STATE = {"encoder.w": torch.ones(2), "quantizer.w": torch.ones(3), "decoder.w": torch.ones(4)}


def native(uri: str | None, *, decoder: bool = True) -> NativeConfig:
    return NativeConfig(
        encoder=Encoder3DConfig(z_channels=6),
        quantizer=FSQConfig(kind="fsq"),
        decoder=Movq3DConfig() if decoder else None,
        weights=uri,
        seed=4,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.torch.save(STATE))
    return path


read = partial(read_weights, options=StoreOptions())


def test_training_the_decoder_further_keeps_the_hash(path: Path) -> None:
    hashes = []
    for changed in ({}, {"decoder.w": torch.zeros(9)}, {"encoder.w": torch.zeros(2)}):
        path.write_bytes(safetensors.torch.save({**STATE, **changed}))
        hashes.append(read(native(str(path))).hash)
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0].startswith("sha256 ")


def test_encoders_get_only_the_weights_they_need(path: Path) -> None:
    encoding = read(native(str(path))).encoding
    assert encoding is not None
    assert safetensors.torch.load(encoding).keys() == {"encoder.w", "quantizer.w"}
    whole = read(native(str(path)), with_decoder=True)
    assert whole.encoding == path.read_bytes()
    assert whole.hash == read(native(str(path))).hash
    # Without a decoder in the config, the model rejects its keys as unexpected.
    unexpected = read(native(str(path), decoder=False))
    assert unexpected.encoding == path.read_bytes()


def test_programs_are_hashed_whole_and_have_a_separate_decoder(tmp_path: Path) -> None:
    (tmp_path / "encoder.jit").write_bytes(b"encoder")
    (tmp_path / "decoder.jit").write_bytes(b"decoder")
    encoder, decoder = f"{tmp_path}/encoder.jit", f"{tmp_path}/decoder.jit"
    config = CosmosDVConfig(
        kind="cosmos_dv", variant="4x8x8", weights=encoder, decoder_weights=decoder
    )
    weights = read(config)
    assert weights.hash == "sha256 " + hashlib.sha256(b"encoder").hexdigest()
    assert (weights.encoding, weights.decoding) == (b"encoder", None)
    assert read(config, with_decoder=True).decoding == b"decoder"


def test_random_weights_are_identified_by_their_seed() -> None:
    assert read(native(None)).hash == "random, seed 4"


def test_missing_and_damaged_files_are_config_errors(path: Path) -> None:
    assert find_weights(str(path), StoreOptions()) == path.stat().st_size
    uri = f"{path.parent}/nowhere.safetensors"
    with pytest.raises(ConfigError, match=r"^tokenizer.weights: no file at .*nowhere"):
        read(native(uri))
    with pytest.raises(ConfigError, match=r"^tokenizer.weights: no file at"):
        find_weights(uri, StoreOptions())
    with pytest.raises(ConfigError, match=r"no file at builtin://no-such-one/config.yaml"):
        read_object("builtin://no-such-one/config.yaml", StoreOptions())
    path.write_bytes(safetensors.torch.save(STATE)[:-1])
    with pytest.raises(ConfigError, match=r"model.safetensors is not a complete safetensors file"):
        read(native(str(path)))
