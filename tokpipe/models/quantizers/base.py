"""What every quantizer does and returns, and products with a codebook: clip by clip, so that their
shape, and so their rounding, is the same in any batch. Latents without positions, (B, C), are the
rows of one product."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.process import exact_float32_products

MAX_DISTANCES = 2**24
"""Distances held at once: 64 MiB. All of 5,120 latents and 262,144 vectors would take 5.4 GB."""

MIN_ROWS = 64
"""Products are padded to this: below 10 rows, MKL rounded by the number of threads."""


class Quantized(NamedTuple):
    """The result of a quantizer's ``forward``."""

    vectors: Tensor
    """(B, dim, ...) float32, the input of the decoder in training. Gradients pass to the latent."""
    codes: Tensor
    """(B, ...) int64, or flat where the published module returns them flat."""
    loss: Tensor | None = None
    """What the quantizer adds to the training loss, if anything."""


class Quantizer(nn.Module, ABC):
    """Names each latent vector by a code in ``range(codebook_size)``. Takes ``latent_dim`` channels
    and returns vectors of ``dim``; most quantizers have them equal. A latent that is not finite
    gets an arbitrary code."""

    def __init__(self, codebook_size: int, dim: int, latent_dim: int | None = None) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.dim = dim
        self.latent_dim = dim if latent_dim is None else latent_dim
        self._constants: dict[str, Tensor] = {}

    def register_constant(self, name: str, value: Any, *, persistent: bool = True) -> None:
        """Add a buffer of integers that the arguments determine; ``to_empty()`` leaves it alone."""
        self.register_buffer(name, None, persistent)
        if value is not None:
            self._constants[name] = torch.as_tensor(value, device="cpu")
            setattr(self, name, self._constants[name].to(torch.empty(0).device))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in self._constants.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    @abstractmethod
    def codes_of(self, latent: Tensor) -> Tensor:
        """(B, latent_dim, ...) -> (B, ...) int64. One clip's codes depend on that clip alone."""

    def vectors_of(self, codes: Tensor) -> Tensor:
        """(B, ...) of any integers -> (B, dim, ...) float32. Raises TypeError if codes are not
        integers, and ValueError if one is outside the codebook."""
        return self._vectors(self._checked(codes)).movedim(-1, 1)

    @abstractmethod
    def forward(self, latent: Tensor) -> Quantized:
        """(B, latent_dim, ...) -> vectors, codes and, where there is one, a loss."""

    @abstractmethod
    def _vectors(self, codes: Tensor) -> Tensor:
        """(B, ...) int64, known to be in range -> (B, ..., dim) float32."""

    def _checked(self, codes: Tensor) -> Tensor:
        """The codes as int64. Raises as ``vectors_of`` does."""
        if codes.is_floating_point() or codes.is_complex():
            raise TypeError(f"codes are {codes.dtype}, but codes are integers: do not convert them")
        codes = codes.long()
        if codes.numel():
            check_range(codes, self.codebook_size)
        return codes

    def _check_channels(self, latent: Tensor) -> None:
        if latent.ndim < 2 or latent.shape[1] != self.latent_dim:
            raise ValueError(
                f"the latent has shape {tuple(latent.shape)}, but {type(self).__name__} takes "
                f"(B, {self.latent_dim}, ...): use an encoder with as many channels"
            )


def check_range(codes: Tensor, codebook_size: int) -> None:
    """Raise ValueError for int64 codes, at least one, outside ``range(codebook_size)``."""
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= codebook_size:
        known = f"the codebook has 0 to {codebook_size - 1}"
        raise ValueError(f"codes from {low} to {high}, but {known}: they are of another, or wrong")


def straight_through(latent: Tensor, vectors: Tensor) -> Tensor:
    """The exact vectors, with the gradient of the latent; both float32 and of the same shape."""
    return vectors.detach() + (latent - latent.detach())


def first_least(
    latents: Tensor,
    vectors: Tensor,
    offsets: Tensor,
    factor: float,
    max_values: int = MAX_DISTANCES,
) -> Tensor:
    """Latents (N, dim), vectors (K, dim), offsets (K,), all float32 -> (N,) int64: the first k with
    the least ``offsets[k] + factor * (latent . vectors[k])``. Searches in blocks of vectors, with
    memory for about ``max_values`` floats."""
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
    """``first_least`` of every position of (B, C, ...), clip by clip -> (B, ...) int64."""
    rows = latent.float()
    rows = rows.unsqueeze(0) if rows.ndim == 2 else rows.flatten(2).transpose(1, 2)
    codes = torch.zeros(rows.shape[:2], dtype=torch.int64, device=latent.device)
    with exact_float32_products(latent.device):
        for clip, found in zip(rows, codes, strict=True):
            found.copy_(first_least(clip, vectors, offsets, factor))
    return codes.view(latent.shape[:1] + latent.shape[2:])


def project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, ..., C_in) -> (B, ..., C_out) float32, for a weight (C_out, C_in) and a bias (C_out,)."""
    clips = x.float().unsqueeze(0) if x.ndim == 2 else x.float().flatten(1, -2)
    weight, bias = weight.float(), bias.float()
    with exact_float32_products(x.device):
        projected = [F.linear(_padded(clip), weight, bias)[: len(clip)] for clip in clips]
    shape = (*x.shape[:-1], len(weight))
    return torch.stack(projected).view(shape) if projected else x.new_zeros(shape).float()
