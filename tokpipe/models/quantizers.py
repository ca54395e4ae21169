"""Quantizers: latents to codes, and codes back to the vectors they name.

All of them compute in float32, whatever they are fed: rounding the latents of a codebook search
to bfloat16 changes about one code in a hundred. Channels stand in dimension 1 of latents and
vectors, so the shapes are (B, dim, ...) and, for codes, (B, ...).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.precision import exact_float32_products


class Quantized(NamedTuple):
    """What a quantizer's ``forward`` returns."""

    vectors: Tensor
    """(B, dim, ...) float32; gradients pass straight through to the latent."""
    codes: Tensor
    """(B, ...) int64."""
    loss: Tensor | None = None
    """What the quantizer adds to a training loss, if it has a say."""


class Quantizer(nn.Module, ABC):
    """Names each latent vector by a code in ``range(codebook_size)``."""

    def __init__(self, codebook_size: int, dim: int) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.dim = dim

    @abstractmethod
    def codes_of(self, latent: Tensor) -> Tensor:
        """(B, dim, ...) -> (B, ...) int64. The latent must be finite."""

    def vectors_of(self, codes: Tensor) -> Tensor:
        """(B, ...) of integers -> (B, dim, ...) float32.

        Raises:
            ValueError: a code that the codebook does not have.
        """
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(
                f"codes from {int(codes.min())} to {int(codes.max())}, but the codebook has 0 to "
                f"{self.codebook_size - 1}: they were made by another quantizer, or are damaged"
            )
        return self._vectors(codes.long().unsqueeze(-1)).movedim(-1, 1)

    @abstractmethod
    def _vectors(self, codes: Tensor) -> Tensor:
        """(B, ..., 1) int64 -> (B, ..., dim) float32."""

    def forward(self, latent: Tensor) -> Quantized:
        """(B, dim, ...) -> vectors, codes."""
        codes = self.codes_of(latent)
        return Quantized(_straight_through(latent, self.vectors_of(codes)), codes)


class FSQ(Quantizer):
    """Finite scalar quantization: each channel is squashed and rounded to one of its levels.

    The code is a mixed-radix number whose first channel is the lowest digit. Vectors lie in
    [-1, 1]. Source: arXiv:2309.15505.
    """

    levels: Tensor
    place_values: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        if not levels or min(levels) < 2:
            raise ValueError(f"levels={list(levels)}: each channel needs two levels at least")
        super().__init__(math.prod(levels), len(levels))
        place_values = [math.prod(levels[:channel]) for channel in range(len(levels))]
        # Integers, which .to(bfloat16) leaves alone; not persistent, as published.
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("place_values", torch.tensor(place_values), persistent=False)

    def codes_of(self, latent: Tensor) -> Tensor:
        """(B, dim, ...) -> (B, ...) int64. Saturates: every finite latent has a code."""
        z = latent.float().movedim(1, -1)
        # Half a level wider than the outermost rounding by a thousandth, so that both ends are
        # reached; an even number of levels is centred between two of them.
        half_width = (self.levels - 1).float() * 1.001 / 2
        offset = (self.levels % 2 == 0).float() * 0.5
        bounded = (z + (offset / half_width).atanh()).tanh() * half_width - offset
        digits = bounded.round().long() + self.levels // 2
        # From 1,001 levels on that thousandth rounds past the last level.
        digits = digits.clamp_min(0).minimum(self.levels - 1)
        return (digits * self.place_values).sum(-1)

    def _vectors(self, codes: Tensor) -> Tensor:
        digits = codes // self.place_values % self.levels
        half_width = self.levels // 2
        return (digits - half_width).float() / half_width


class LFQ(Quantizer):
    """Lookup-free quantization: the sign of each channel is one bit; the first is the highest.

    Vectors hold -1 and 1. ``mask`` is part of the published state_dict. The entropy loss of
    training is not computed here. Source: arXiv:2310.05737.
    """

    mask: Tensor

    def __init__(self, dim: int) -> None:
        if not 1 <= dim <= 62:
            raise ValueError(f"dim={dim}: a code of int64 holds 1 to 62 bits")
        super().__init__(2**dim, dim)
        self.register_buffer("mask", 2 ** torch.arange(dim - 1, -1, -1))

    def codes_of(self, latent: Tensor) -> Tensor:
        """(B, dim, ...) -> (B, ...) int64. Zero counts as negative."""
        return ((latent.movedim(1, -1) > 0) * self.mask).sum(-1)

    def _vectors(self, codes: Tensor) -> Tensor:
        return ((codes & self.mask) != 0).float() * 2 - 1


class VectorQuantizer(Quantizer):
    """Names the nearest code vector of a learnt codebook, by Euclidean distance.

    ``n_e`` vectors of ``e_dim`` channels; ``beta`` weighs the commitment term of the loss.
    ``sane_index_shape=False`` makes ``forward`` return the codes flat, as published.
    Source: arXiv:1711.00937.
    """

    def __init__(
        self, n_e: int, e_dim: int, beta: float = 0.25, sane_index_shape: bool = False
    ) -> None:
        super().__init__(n_e, e_dim)
        self.beta = beta
        self.sane_index_shape = sane_index_shape
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)

    @torch.no_grad()
    def codes_of(self, latent: Tensor) -> Tensor:
        """(B, dim, ...) -> (B, ...) int64; of vectors equally near, the first."""
        codebook = self.embedding.weight.float()
        # Clip by clip, so that the shape of the products, and by it their rounding, does not
        # depend on the batch. Vectors without positions are rows of one product.
        clips = latent if latent.ndim > 2 else latent.T.unsqueeze(0)
        with exact_float32_products(latent.device):
            codes = [nearest(z.float().reshape(self.dim, -1).T, codebook) for z in clips]
        return torch.stack(codes).view(latent.shape[:1] + latent.shape[2:])

    def _vectors(self, codes: Tensor) -> Tensor:
        vectors: Tensor = self.embedding(codes.squeeze(-1))
        return vectors.float()

    def forward(self, latent: Tensor) -> Quantized:
        """(B, dim, ...) -> vectors, codes, loss."""
        codes = self.codes_of(latent)
        vectors, latent = self.vectors_of(codes), latent.float()
        commitment = F.mse_loss(latent, vectors.detach())
        loss = self.beta * commitment + F.mse_loss(vectors, latent.detach())
        codes = codes if self.sane_index_shape else codes.flatten()
        return Quantized(_straight_through(latent, vectors), codes, loss)


MAX_DISTANCES = 2**24
"""Distances held at once: 64 MiB, where 5,120 latents by 262,144 vectors would take 5.4 GB."""

MIN_ROWS = 64
"""Products of fewer rows are filled up: below 10, MKL rounded them by the number of threads."""


def nearest(latents: Tensor, codebook: Tensor, max_distances: int = MAX_DISTANCES) -> Tensor:
    """Index of the code vector nearest to each latent, the first of several.

    latents (N, dim), codebook (K, dim), both float32 -> (N,) int64. The codebook is searched in
    blocks, so memory stays at about ``max_distances`` floats. The latent's own norm is left out:
    it is the same for every code vector, and adding it would only round differences away.
    """
    found = len(latents)
    if found < MIN_ROWS:
        latents = F.pad(latents, (0, 0, 0, MIN_ROWS - found))
    best = torch.full_like(latents[:, 0], math.inf)
    codes = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    block = max(1, max_distances // len(latents))
    for first in range(0, len(codebook), block):
        vectors = codebook[first : first + block]
        distances = torch.addmm(vectors.square().sum(1), latents, vectors.T, alpha=-2)
        # min returns the first of equals, and a later block must be strictly nearer.
        distance, index = distances.min(dim=1)
        nearer = distance < best
        best = torch.where(nearer, distance, best)
        codes = torch.where(nearer, first + index, codes)
    return codes[:found]


def _straight_through(latent: Tensor, vectors: Tensor) -> Tensor:
    """The vectors, with the gradient of the latent."""
    latent = latent.float()
    return latent + (vectors - latent).detach()
