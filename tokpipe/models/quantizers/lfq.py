"""Lookup-free quantization: one bit per channel."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokpipe.models.precision import exact_float32_products
from tokpipe.models.quantizers.base import Quantized, straight_through
from tokpipe.models.quantizers.scalar import ScalarQuantizer

JOINT_BITS = 18
"""Bits whose joint distribution the entropy loss holds at once: 2**18 floats, 1 MiB."""


class LFQ(ScalarQuantizer):
    """Lookup-free quantization: the sign of each channel is one bit of the code.

    Pass ``dim``, ``codebook_size`` (a power of two) or both; ``num_codebooks`` and
    ``keep_num_codebooks_dim``: see ``ScalarQuantizer``. Vectors hold ``-codebook_scale`` and
    ``codebook_scale``, before ``project_out`` if there is one.

    ``bit_order="big"``, as first published, makes the first channel the highest bit, "little" the
    lowest, as in Open-MAGVIT2. The buffer ``mask`` (codebook_dim,) of the published state_dict
    holds the values of the bits, so that loading weights of the other order fails.

    In ``train()`` mode the loss is ``entropy_loss_weight`` times (the entropy of each latent's
    soft code, minus ``diversity_gamma`` times that of their mean), in nats, plus
    ``commitment_loss_weight`` times the squared distance of the latent to its vector; in
    ``eval()`` mode it is zero, as published. Source: arXiv:2310.05737.
    """

    mask: Tensor

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
        if codebook_size is not None:
            if codebook_size < 2 or codebook_size & (codebook_size - 1):
                raise ValueError(f"{codebook_size=}: must be a power of two, one bit per channel")
            num_bits = codebook_size.bit_length() - 1
        elif dim is not None:
            num_bits = dim
        else:
            raise ValueError("dim and codebook_size are both missing: pass at least one")
        if not 1 <= num_bits <= 62:
            raise ValueError(f"dim={num_bits}: a code of int64 holds 1 to 62 bits")
        if codebook_scale <= 0:
            raise ValueError(f"{codebook_scale=}: must be above 0")
        if bit_order not in ("big", "little"):
            raise ValueError(f"{bit_order=}: use 'big' (first channel highest) or 'little'")
        super().__init__(2**num_bits, num_bits, dim, num_codebooks, keep_num_codebooks_dim)
        self.entropy_loss_weight = entropy_loss_weight
        self.commitment_loss_weight = commitment_loss_weight
        self.diversity_gamma = diversity_gamma
        self.codebook_scale = codebook_scale
        mask = 2 ** torch.arange(num_bits)
        self.register_buffer("mask", mask.flip(0) if bit_order == "big" else mask)

    def _codes(self, inner: Tensor) -> Tensor:
        """Zero counts as negative."""
        return ((inner > 0) * self.mask).sum(-1)

    def _inner_vectors(self, codes: Tensor) -> Tensor:
        signs = ((codes.unsqueeze(-1) & self.mask) != 0).float() * 2 - 1
        return signs * self.codebook_scale

    def forward(self, latent: Tensor, inv_temperature: float = 100.0) -> Quantized:
        """(B, dim, ...) -> vectors, codes, loss.

        ``inv_temperature`` sharpens the soft codes of the entropy loss.
        """
        inner = self._inner(latent)
        codes = self._codes(inner.detach())
        vectors = self._inner_vectors(codes)
        loss = inner.new_zeros(())
        if self.training:
            per_sample, of_mean = self._entropies(inner, inv_temperature)
            entropy = per_sample - self.diversity_gamma * of_mean
            commitment = F.mse_loss(inner, vectors)
            loss = self.entropy_loss_weight * entropy + self.commitment_loss_weight * commitment
        vectors = self._outer(straight_through(inner, vectors)).movedim(-1, 1)
        return Quantized(vectors, self._shaped(codes), loss)

    def _entropies(self, inner: Tensor, inv_temperature: float) -> tuple[Tensor, Tensor]:
        """Mean entropy of the latents' soft codes, and entropy of their mean, over codebooks.

        The published soft code is the softmax, over all code vectors, of ``2 * inv_temperature``
        times the dot product with the latent. That is a product of independent bits, so the
        entropy of each is a sum over bits.
        """
        logits = 4 * inv_temperature * self.codebook_scale * inner.flatten(0, -3)
        # Entropy of a bit from its logit, finite for every logit.
        per_bit = F.softplus(logits) - logits * logits.sigmoid()
        of_mean = [entropy_of_mean(bits) for bits in logits.unbind(1)]
        return per_bit.sum(-1).mean(), torch.stack(of_mean).mean()


def entropy_of_mean(logits: Tensor) -> Tensor:
    """Entropy, in nats, of the mean of N distributions of codes, each of independent bits.

    logits (N, num_bits) -> (). Exact up to 18 bits: as a matrix, lower half of the bits by upper
    half, the mean of the distributions is one matrix product. Wider codes are split into groups of
    at most 18 bits, whose entropies are summed: an upper bound, exact where groups are independent
    in the batch. (Published implementations cut off probabilities below 1e-5, which underestimates
    the entropy from 17 bits on, even for the uniform distribution.)
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
