"""Products with a codebook, clip by clip, so that no result depends on the rest of the batch.

Their shape, and with it their rounding, is then the same for a clip in any batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tokpipe.models.process import exact_float32_products

MAX_DISTANCES = 2**24
"""Distances held at once: 64 MiB. All of 5,120 latents and 262,144 vectors would take 5.4 GB."""

MIN_ROWS = 64
"""Products are padded to this: below 10 rows, MKL rounded by the number of threads."""


def first_least(
    latents: Tensor,
    vectors: Tensor,
    offsets: Tensor,
    factor: float,
    max_values: int = MAX_DISTANCES,
) -> Tensor:
    """For each latent, the k with the least ``offsets[k] + factor * (latent . vectors[k])``.

    latents (N, dim), vectors (K, dim), offsets (K,), all float32 -> (N,) int64, the first of
    several. Searches in blocks of vectors, with memory for about ``max_values`` floats.
    """
    found = len(latents)
    latents = _padded(latents)
    best = torch.full_like(latents[:, 0], math.inf)
    indices = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    block = max(1, max_values // len(latents))
    for first in range(0, len(vectors), block):
        span = slice(first, first + block)
        values = torch.addmm(offsets[span], latents, vectors[span].T, alpha=factor)
        # min returns the first of equals, and a later block must be strictly less.
        least, index = values.min(dim=1)
        less = least < best
        best = torch.where(less, least, best)
        indices = torch.where(less, first + index, indices)
    return indices[:found]


def _padded(rows: Tensor) -> Tensor:
    return F.pad(rows, (0, 0, 0, max(0, MIN_ROWS - len(rows))))


@torch.no_grad()
def search(latent: Tensor, vectors: Tensor, offsets: Tensor, factor: float) -> Tensor:
    """``first_least`` of every position of (B, C, ...), clip by clip -> (B, ...) int64.

    Latents without positions, (B, C), are the rows of one product.
    """
    rows = latent.float()
    rows = rows.unsqueeze(0) if rows.ndim == 2 else rows.flatten(2).transpose(1, 2)
    codes = torch.zeros(rows.shape[:2], dtype=torch.int64, device=latent.device)
    with exact_float32_products(latent.device):
        for clip, found in zip(rows, codes, strict=True):
            found.copy_(first_least(clip, vectors, offsets, factor))
    return codes.view(latent.shape[:1] + latent.shape[2:])


def project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, ..., C_in) -> (B, ..., C_out) float32, for a weight (C_out, C_in) and a bias (C_out,).

    Latents without positions, (B, C_in), are the rows of one product.
    """
    clips = x.float().unsqueeze(0) if x.ndim == 2 else x.float().flatten(1, -2)
    weight, bias = weight.float(), bias.float()
    with exact_float32_products(x.device):
        projected = [F.linear(_padded(clip), weight, bias)[: len(clip)] for clip in clips]
    shape = (*x.shape[:-1], len(weight))
    return torch.stack(projected).view(shape) if projected else x.new_zeros(shape).float()
