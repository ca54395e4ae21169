"""The tokenizer: an encoder and a quantizer, from a config, with given or random weights."""

from __future__ import annotations

import hashlib
import math

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tokpipe.config.tokenizer import FSQConfig, LFQConfig, TokenizerConfig
from tokpipe.errors import ConfigError
from tokpipe.models.encoder_3d import Encoder3D
from tokpipe.models.published import load_published
from tokpipe.models.quantizers import FSQ, LFQ, Quantizer, VectorQuantizer

NOT_FINITE = -1
"""Stands in place of a code where the latent holds NaN or infinity."""


class Tokenizer(nn.Module):
    """Turns pixels into codes. The encoder has the dtype of its weights, the quantizer float32."""

    def __init__(self, encoder: Encoder3D, quantizer: Quantizer) -> None:
        super().__init__()
        self.encoder = encoder
        self.quantizer = quantizer

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 RGB -> (B, t, h, w) int64 codes, or ``NOT_FINITE``.

        ``T = 1 + r * j`` gives ``t = 1 + j``; H and W are multiples of the spatial stride.

        Raises:
            ValueError: pixels of another shape or dtype.
        """
        self._check(pixels)
        dtype = self.encoder.conv_in.conv.weight.dtype
        # Exact in float32, before any rounding to the encoder's dtype.
        x = pixels.float().div_(127.5).sub_(1).to(dtype)
        latent: Tensor = self.encoder(x.movedim(-1, 1)).float()
        codes = self.quantizer.codes_of(latent)
        return codes.where(latent.isfinite().all(dim=1), NOT_FINITE)

    def _check(self, pixels: Tensor) -> None:
        space, time = self.encoder.spatial_stride, self.encoder.temporal_stride
        if pixels.dtype != torch.uint8 or pixels.ndim != 5 or pixels.shape[-1] != 3:
            raise ValueError(
                f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}, but the "
                "tokenizer takes uint8 of (B, T, H, W, 3)"
            )
        frames, height, width = pixels.shape[1:4]
        if frames % time != 1 % time or height % space or width % space or not pixels.numel():
            raise ValueError(
                f"{frames} frames of {height}x{width} do not fill the latent grid, whose strides "
                f"are {time} in time (after the first frame) and {space} in space: "
                "pad or cut the frames first"
            )


def build_tokenizer(config: TokenizerConfig, weights: bytes | None) -> Tokenizer:
    """Return the tokenizer of ``config`` on the CPU, in float32 and eval mode.

    ``weights`` are the bytes of a safetensors file with exactly the keys of the model below
    ``encoder.`` and ``quantizer.``. Without them the parameters are random, each a pure function
    of ``config.seed`` and its key. The global random state is left as it was.

    Raises:
        ConfigError: weights that do not fit the model, or that the config names but are not given.
    """
    if config.weights is not None and weights is None:
        raise ConfigError(
            f"tokenizer.weights names {config.weights}, but its bytes were not given; random "
            "weights in their place would give meaningless codes"
        )
    # The layers draw their own initial values from the global generator: give it back as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        tokenizer = Tokenizer(_build_encoder(config), _build_quantizer(config)).float().eval()
    if weights is None:
        _randomize(tokenizer, config.seed)
    else:
        _load(tokenizer, weights, source=config.weights or "tokenizer.weights")
    return tokenizer.requires_grad_(False)


def _build_encoder(config: TokenizerConfig) -> Encoder3D:
    arguments = config.encoder.model_dump(exclude={"kind"})
    return Encoder3D(**arguments, double_z=False)


def _build_quantizer(config: TokenizerConfig) -> Quantizer:
    quantizer = config.quantizer
    if isinstance(quantizer, FSQConfig):
        return FSQ(quantizer.levels)
    if isinstance(quantizer, LFQConfig):
        return LFQ(quantizer.dim)
    return VectorQuantizer(quantizer.codebook_size, quantizer.codebook_dim)


def _randomize(tokenizer: Tokenizer, seed: int) -> None:
    """Fill every parameter from a generator of its own, seeded by ``seed`` and its key.

    Uniform numbers, because they are made from the generator's bits alone: normal ones go
    through logarithms that differ between CPUs. Matrices keep the variance of their input, so
    latents spread over many codes.
    """
    for key, parameter in tokenizer.named_parameters():
        if parameter.ndim < 2:
            parameter.data.fill_(1.0 if key.endswith("weight") else 0.0)
            continue
        fan_in = 1 if key.startswith("quantizer.") else math.prod(parameter.shape[1:])
        bound = math.sqrt(3 / fan_in)
        digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
        parameter.data.copy_(noise.mul_(2 * bound).sub_(bound))


def _load(tokenizer: Tokenizer, weights: bytes, source: str) -> None:
    """Load strictly: every key, shape and constant must be the model's."""
    try:
        given = safetensors.torch.load(weights)
    except safetensors.SafetensorError as error:
        raise ConfigError(
            f"{source}: is no whole safetensors file ({error}); convert other checkpoints first, "
            "and copy this one again if it was cut short"
        ) from error
    load_published(tokenizer, given, source=source)
