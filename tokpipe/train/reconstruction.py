"""Reconstruction with gradients through the codes, its losses, and initial weights."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.quantizers import FSQ, Quantized
from tokpipe.models.spatial_norm import SpatialNorm3D
from tokpipe.models.tokenizers.native import NativeTokenizer, fill_uniform
from tokpipe.train.config import LossConfig


def scaled(pixels: Tensor) -> Tensor:
    """(B, T, H, W, 3) uint8 -> (B, 3, T, H, W) float32 in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).movedim(-1, 1)


def reconstruct(tokenizer: NativeTokenizer, x: Tensor) -> tuple[Tensor, Quantized, Tensor]:
    """(B, 3, T, H, W) in [-1, 1] -> the reconstruction, the quantizer's output, the latent."""
    latent = tokenizer.latent_of(x)
    with torch.autocast(x.device.type, enabled=False):
        quantized: Quantized = tokenizer.quantizer(latent.float())
    y = tokenizer.frames_of(quantized.vectors)
    return y.float(), quantized, latent.float()


def losses(
    tokenizer: NativeTokenizer, x: Tensor, weights: LossConfig
) -> tuple[dict[str, Tensor], Quantized]:
    """Return ``mse``, each other term that has a weight, and ``loss``, the weighted sum of all."""
    y, quantized, latent = reconstruct(tokenizer, x)
    error = y - x
    terms = {"mse": error.square().mean()}
    if weights.l1:
        terms["l1"] = error.abs().mean()
    if weights.gradient:
        across, down = error.diff(dim=-1), error.diff(dim=-2)
        terms["gradient"] = across.abs().mean() + down.abs().mean()
    if weights.quantizer and quantized.loss is not None:
        terms["quantizer"] = quantized.loss
    if weights.guide:
        wanted = guide(x, tokenizer.traits.temporal_stride, tokenizer.traits.spatial_stride)
        shared = min(wanted.shape[1], latent.shape[1])
        terms["guide"] = F.mse_loss(latent[:, :shared], wanted[:, :shared])
    if weights.saturation:
        # FSQ hardly squashes latents up to 1.5: with 8 levels, the last begins at 1.14 and the
        # first ends at -1.42.
        terms["saturation"] = F.relu(latent.abs() - 1.5).square().mean()
    if weights.rounding:
        assert isinstance(tokenizer.quantizer, FSQ)
        bounded = tokenizer.quantizer.bounded(latent)
        terms["rounding"] = (bounded - bounded.detach().round()).square().mean()
    weighted = [getattr(weights, name) * term for name, term in terms.items()]
    terms["loss"] = torch.stack(weighted).sum()
    return terms, quantized


def guide(x: Tensor, temporal_stride: int, spatial_stride: int) -> Tensor:
    """Compute cosine coefficients of each latent's block of pixels, averaged over its frames.

    (B, 3, T, H, W) in [-1, 1] -> (B, 8, t, h, w) in about [-1.5, 1.5]: mean and both slopes of the
    brightness, then both colour differences, then the brightness's diagonal and both curvatures.
    """
    first, rest = x[:, :, :1], x[:, :, 1:]
    rest = rest.unflatten(2, (-1, temporal_stride)).mean(3)
    blocks = torch.cat([first, rest], 2)
    blocks = blocks.unflatten(4, (-1, spatial_stride)).unflatten(3, (-1, spatial_stride))
    red, green, blue = blocks.unbind(1)  # (B, t, h, s, w, s)
    light = 0.3 * red + 0.6 * green + 0.1 * blue
    place = (torch.arange(spatial_stride, device=x.device) + 0.5) * math.pi / spatial_stride
    waves = [torch.cos(order * place) for order in range(3)]

    def coefficient(values: Tensor, down: int, across: int, gain: float) -> Tensor:
        wave = waves[down][:, None, None] * waves[across]
        return (gain * (values * wave).mean((3, 5))).tanh() * 1.5

    # Each gain gives its coefficient a standard deviation of about 0.7 in natural images.
    wanted = (
        *((light, 0, 0, 1.2), (light, 0, 1, 11.0), (light, 1, 0, 11.0)),
        *((blue - light, 0, 0, 3.0), (red - light, 0, 0, 5.0)),
        *((light, 1, 1, 28.0), (light, 0, 2, 22.0), (light, 2, 0, 22.0)),
    )
    return torch.stack([coefficient(*one) for one in wanted], 1)


def initialize(tokenizer: NativeTokenizer, seed: int) -> None:
    """Set every parameter to its initial value, which depends on ``seed`` and its key.

    Convolutions preserve the variance of their input. Residual blocks start as the identity and
    the decoder's norms close to plain ones, so that deep stacks learn from the first step.
    """
    for key, parameter in tokenizer.named_parameters():
        if key.endswith("bias") or key.startswith("quantizer."):
            continue
        if parameter.ndim > 1:
            fill_uniform(parameter, 1 / math.sqrt(math.prod(parameter.shape[1:])), seed, key)
    for key, module in tokenizer.named_modules():
        if isinstance(module, SpatialNorm3D):
            module.conv_y.conv.weight.data.mul_(0.3)
            module.conv_b.conv.weight.data.mul_(0.3)
            assert module.conv_y.conv.bias is not None
            nn.init.ones_(module.conv_y.conv.bias)
        if key.endswith(".conv2"):
            nn.init.zeros_(module.conv.weight)
