"""Quantizers that round each channel separately, and learn no codebook: FSQ and LFQ."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.arguments import takes
from tokpipe.models.process import exact_float32_products
from tokpipe.models.quantizers.base import Quantized, Quantizer, project, straight_through

MAX_LEVELS = 2**22
"""Levels of a channel: with more, float32 cannot tell the middle of a level from its edge."""

JOINT_BITS = 18
"""Bits whose joint distribution the entropy loss holds at once: 2**18 floats, 1 MiB."""


class _Projection(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return project(x, self.weight, self.bias)


class ScalarQuantizer(Quantizer):
    """Rounds ``codebook_dim`` channels, each separately, to one code.

    The latent has ``dim`` channels. Where another number is rounded, ``project_in`` and
    ``project_out`` convert there and back, as published. With ``num_codebooks = n``, groups of
    ``codebook_dim`` channels get a code each, in a last dimension of the codes, (B, ..., n), which
    ``keep_num_codebooks_dim`` keeps for one codebook.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        dim: int | None,
        num_codebooks: int,
        keep_num_codebooks_dim: bool | None,
    ) -> None:
        if num_codebooks < 1:
            raise ValueError(f"{num_codebooks=}: must be 1 or more")
        if num_codebooks > 1 and keep_num_codebooks_dim is False:
            raise ValueError(
                f"{num_codebooks=} returns as many codes per position, for which "
                "keep_num_codebooks_dim=False leaves no dimension: leave it out"
            )
        channels = codebook_dim * num_codebooks
        super().__init__(codebook_size, channels if dim is None else dim)
        self.codebook_dim = codebook_dim
        self.num_codebooks = num_codebooks
        self.keep_num_codebooks_dim = num_codebooks > 1 or bool(keep_num_codebooks_dim)
        projected = self.dim != channels
        self.project_in = _Projection(self.dim, channels) if projected else nn.Identity()
        self.project_out = _Projection(channels, self.dim) if projected else nn.Identity()

    def codes_of(self, latent: Tensor) -> Tensor:
        """(B, dim, ...) -> (B, ...) int64, or (B, ..., n) for n codebooks."""
        return self._shaped(self._codes(self._inner(latent).detach()))

    @abstractmethod
    def _codes(self, inner: Tensor) -> Tensor:
        """(B, ..., n, codebook_dim) float32 -> (B, ..., n) int64."""

    @abstractmethod
    def _inner_vectors(self, codes: Tensor) -> Tensor:
        """(B, ..., n) int64 -> (B, ..., n, codebook_dim) float32."""

    def _vectors(self, codes: Tensor) -> Tensor:
        if not self.keep_num_codebooks_dim:
            codes = codes.unsqueeze(-1)
        elif codes.ndim < 2 or codes.shape[-1] != self.num_codebooks:
            raise ValueError(
                f"codes have shape {tuple(codes.shape)}, but the last dimension holds the codes "
                f"of the {self.num_codebooks} codebooks: pass them as codes_of returned them"
            )
        return self.project_out(self._inner_vectors(codes).flatten(-2))

    def _inner(self, latent: Tensor) -> Tensor:
        """(B, dim, ...) -> (B, ..., n, codebook_dim) float32, to be rounded."""
        self._check_channels(latent)
        x = self.project_in(latent.float().movedim(1, -1))
        return x.unflatten(-1, (self.num_codebooks, self.codebook_dim))

    def _quantized(self, inner: Tensor, codes: Tensor, loss: Tensor | None = None) -> Quantized:
        """The result of ``forward``, whose gradient passes to ``inner``, in the unit of vectors."""
        vectors = straight_through(inner, self._inner_vectors(codes))
        vectors = self.project_out(vectors.flatten(-2)).movedim(-1, 1)
        return Quantized(vectors, self._shaped(codes), loss)

    def _shaped(self, codes: Tensor) -> Tensor:
        return codes if self.keep_num_codebooks_dim else codes.squeeze(-1)


class FSQ(ScalarQuantizer):
    """Finite scalar quantization: each channel is squashed and rounded to one of its levels.

    The code is a mixed-radix number whose first channel is the lowest digit. Vectors lie in
    [-1, 1], before any ``project_out``. Gradients pass straight through the rounding, but not the
    squashing. There is no loss. Other arguments: see ``ScalarQuantizer``. Source: arXiv:2309.15505.
    """

    levels: Tensor
    place_values: Tensor

    @takes("scale")
    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
    ) -> None:
        levels = tuple(levels)
        fits = levels and 2 <= min(levels) <= max(levels) <= MAX_LEVELS
        if not fits or math.prod(levels) > 2**62:
            do = f"each channel needs 2 to {MAX_LEVELS}, and there are at most 2**62 codes in all"
            raise ValueError(f"levels={list(levels)}: {do}")
        super().__init__(math.prod(levels), len(levels), dim, num_codebooks, keep_num_codebooks_dim)
        place_values = [math.prod(levels[:channel]) for channel in range(len(levels))]
        # Integers, which .to(bfloat16) leaves alone; not persistent, as published.
        self.register_constant("levels", levels, persistent=False)
        self.register_constant("place_values", place_values, persistent=False)

    def bounded(self, latent: Tensor) -> Tensor:
        """The values before rounding: (B, dim, ...) -> (B, codebook_dim * n, ...) float32, in
        levels. The distance to the nearest integer says how close the code is to changing: training
        that pulls it down makes codes that survive reduced precision."""
        return self._inner(latent).flatten(-2).movedim(-1, 1)

    def _inner(self, latent: Tensor) -> Tensor:
        # A thousandth wider, to reach the outermost levels; an even number is centred between two.
        half_width = (self.levels - 1).float() * 1.001 / 2
        offset = (self.levels % 2 == 0).float() * 0.5
        shift = (offset / half_width).atanh()
        return (super()._inner(latent) + shift).tanh() * half_width - offset

    def _codes(self, inner: Tensor) -> Tensor:
        digits = inner.round().long() + self.levels // 2
        # From 1,001 levels on that thousandth rounds past the last level.
        digits = digits.clamp_min(0).minimum(self.levels - 1)
        return (digits * self.place_values).sum(-1)

    def _inner_vectors(self, codes: Tensor) -> Tensor:
        half_width = self.levels // 2
        digits = codes.unsqueeze(-1) // self.place_values % self.levels
        return (digits - half_width).float() / half_width

    def forward(self, latent: Tensor) -> Quantized:
        """(B, dim, ...) -> vectors, codes; no loss."""
        inner = self._inner(latent)
        return self._quantized(inner / (self.levels // 2), self._codes(inner.detach()))


class LFQ(ScalarQuantizer):
    """Lookup-free quantization: the sign of each channel is one bit of the code.

    Pass ``dim``, ``codebook_size`` (a power of two) or both. Vectors hold ``-codebook_scale`` and
    ``codebook_scale``, before any ``project_out``. See also ``ScalarQuantizer``.

    ``bit_order="big"``, as first published, makes the first channel the highest bit, "little" the
    lowest, as in Open-MAGVIT2. The buffer ``mask`` (codebook_dim,) of the published state_dict
    holds the values of the bits, so that loading weights of the other order fails.

    In ``train()`` mode the loss is ``entropy_loss_weight`` times (the entropy of each latent's
    soft code, minus ``diversity_gamma`` times that of their mean), in nats, plus
    ``commitment_loss_weight`` times the squared distance of the latent to its vector; in
    ``eval()`` mode it is zero, as published. Source: arXiv:2310.05737.
    """

    mask: Tensor

    @takes(straight_through_activation=(None, nn.Identity), frac_per_sample_entropy=(1.0,))
    def __init__(
        self,
        dim: int | None = None,
        codebook_size: int | None = None,
        entropy_loss_weight: float = 0.1,
        commitment_loss_weight: float = 0.25,
        diversity_gamma: float = 1.0,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        codebook_scale: float = 1.0,
        bit_order: Literal["big", "little"] = "big",
    ) -> None:
        num_bits = (dim or 0) if codebook_size is None else codebook_size.bit_length() - 1
        if not 1 <= num_bits <= 62 or codebook_size not in (None, 2**num_bits):
            do = "a code has 1 to 62 bits. Pass them as dim, or a power of two as codebook_size"
            raise ValueError(f"{dim=}, {codebook_size=}: {do}")
        if codebook_scale <= 0:
            raise ValueError(f"{codebook_scale=}: must be above 0")
        if bit_order not in ("big", "little"):
            raise ValueError(f"{bit_order=}: use 'big' (first channel highest) or 'little'")
        super().__init__(2**num_bits, num_bits, dim, num_codebooks, keep_num_codebooks_dim)
        self.entropy_loss_weight = entropy_loss_weight
        self.commitment_loss_weight = commitment_loss_weight
        self.diversity_gamma = diversity_gamma
        self.codebook_scale = codebook_scale
        mask = [2**bit for bit in range(num_bits)]
        self.register_constant("mask", mask[::-1] if bit_order == "big" else mask)

    def _codes(self, inner: Tensor) -> Tensor:
        """Zero counts as negative."""
        return ((inner > 0) * self.mask).sum(-1)

    def _inner_vectors(self, codes: Tensor) -> Tensor:
        signs = ((codes.unsqueeze(-1) & self.mask) != 0).float() * 2 - 1
        return signs * self.codebook_scale

    @takes(return_loss_breakdown=(False,), mask=(None,))
    def forward(self, latent: Tensor, inv_temperature: float = 100.0) -> Quantized:
        """(B, dim, ...) -> vectors, codes, loss, whose soft codes ``inv_temperature`` sharpens."""
        inner = self._inner(latent)
        codes = self._codes(inner.detach())
        loss = inner.new_zeros(())
        if self.training:
            # The published soft code, the softmax over all code vectors of 2 * inv_temperature
            # times the dot product with the latent, is a product of independent bits.
            logits = 4 * inv_temperature * self.codebook_scale * inner.flatten(0, -3)
            # Entropy of a bit from its logit, finite for every logit.
            per_bit = F.softplus(logits) - logits * logits.sigmoid()
            of_mean = torch.stack([entropy_of_mean(bits) for bits in logits.unbind(1)]).mean()
            entropy = per_bit.sum(-1).mean() - self.diversity_gamma * of_mean
            commitment = F.mse_loss(inner, self._inner_vectors(codes))
            loss = self.entropy_loss_weight * entropy + self.commitment_loss_weight * commitment
        return self._quantized(inner, codes, loss)


def entropy_of_mean(logits: Tensor) -> Tensor:
    """Entropy, in nats, of the mean of N distributions of codes, each of independent bits.

    logits (N, num_bits) -> (). Exact up to 18 bits: as a matrix, lower half of the bits by upper
    half, the mean of the distributions is one matrix product. Wider codes are split into groups of
    at most 18 bits, whose entropies are summed: an upper bound. (Published code cuts off
    probabilities below 1e-5, which underestimates the entropy from 17 bits on.)
    """
    num_groups = math.ceil(logits.shape[1] / JOINT_BITS)
    total = logits.new_zeros(())
    for group in logits.tensor_split(num_groups, dim=1):
        lower, upper = (_products(half) for half in group.tensor_split(2, dim=1))
        with exact_float32_products(logits.device):
            joint = lower.T @ upper / len(logits)
        # Far below any relevant probability; keeps 0 log 0 and its gradient finite.
        total = total - (joint * joint.clamp_min(1e-30).log()).sum()
    return total


def _products(logits: Tensor) -> Tensor:
    """(N, num_bits) -> (N, 2**num_bits): the probability of each value of the bits."""
    table = logits.new_ones(len(logits), 1)
    for bit in logits.unbind(1):
        chances = torch.stack([(-bit).sigmoid(), bit.sigmoid()], dim=1)
        table = (table.unsqueeze(2) * chances.unsqueeze(1)).flatten(1)
    return table
