"""Finite scalar quantization: a grid in place of a codebook."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tokpipe.models.quantizers.base import Quantized, straight_through
from tokpipe.models.quantizers.scalar import ScalarQuantizer

MAX_LEVELS = 2**22
"""Levels of a channel: with more, float32 cannot tell the middle of a level from its edge."""


class FSQ(ScalarQuantizer):
    """Finite scalar quantization: each channel is squashed and rounded to one of its levels.

    The code is a mixed-radix number whose first channel is the lowest digit. Vectors lie in
    [-1, 1], before ``project_out`` if there is one. Gradients pass straight through the rounding,
    but not the squashing. There is no loss. ``dim``, ``num_codebooks`` and
    ``keep_num_codebooks_dim``: see ``ScalarQuantizer``. Source: arXiv:2309.15505.
    """

    levels: Tensor
    place_values: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
    ) -> None:
        levels = tuple(levels)
        if not levels or min(levels) < 2:
            raise ValueError(f"levels={list(levels)}: each channel needs at least two")
        if max(levels) > MAX_LEVELS or math.prod(levels) > 2**62:
            raise ValueError(
                f"levels={list(levels)}: at most {MAX_LEVELS} per channel, which float32 can tell "
                "apart, and 2**62 codes in all, which int64 holds"
            )
        super().__init__(math.prod(levels), len(levels), dim, num_codebooks, keep_num_codebooks_dim)
        place_values = [math.prod(levels[:channel]) for channel in range(len(levels))]
        # Integers, which .to(bfloat16) leaves alone; not persistent, as published.
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("place_values", torch.tensor(place_values), persistent=False)

    def bounded(self, latent: Tensor) -> Tensor:
        """The values before rounding: (B, dim, ...) -> (B, codebook_dim * n, ...) float32.

        The unit is one level, so the middle of every level is an integer, and the distance to the
        nearest one, 0 to about 0.5, says how close the code is to changing. Training that pulls
        it down makes codes that survive reduced precision. Differentiable.
        """
        return self._bound(self._inner(latent)).flatten(-2).movedim(-1, 1)

    def codes_of_vectors(self, vectors: Tensor) -> Tensor:
        """The inverse of ``vectors_of``: (B, dim, ...) -> (B, ...), or (B, ..., n), int64.

        Vectors between levels get the nearest one.

        Raises:
            ValueError: a quantizer with ``project_out``, which has no inverse, or vectors with
                another number of channels.
        """
        if self.dim != self.codebook_dim * self.num_codebooks:
            raise ValueError(
                f"vectors of {self.dim} channels are projected from "
                f"{self.codebook_dim * self.num_codebooks}, so their codes cannot be recovered. "
                "Keep the codes instead"
            )
        digits = self._round(self._inner(vectors) * (self.levels // 2))
        return self._shaped((digits * self.place_values).sum(-1))

    def _bound(self, inner: Tensor) -> Tensor:
        # A thousandth wider than needed, so that both outermost levels are reached; an even number
        # of levels is centred between two of them.
        half_width = (self.levels - 1).float() * 1.001 / 2
        offset = (self.levels % 2 == 0).float() * 0.5
        return (inner + (offset / half_width).atanh()).tanh() * half_width - offset

    def _round(self, bounded: Tensor) -> Tensor:
        """Bounded values -> digits from 0 on, int64."""
        digits = bounded.round().long() + self.levels // 2
        # From 1,001 levels on that thousandth rounds past the last level.
        return digits.clamp_min(0).minimum(self.levels - 1)

    def _codes(self, inner: Tensor) -> Tensor:
        return (self._round(self._bound(inner)) * self.place_values).sum(-1)

    def _inner_vectors(self, codes: Tensor) -> Tensor:
        return self._digits_to_vectors(codes.unsqueeze(-1) // self.place_values % self.levels)

    def _digits_to_vectors(self, digits: Tensor) -> Tensor:
        half_width = self.levels // 2
        return (digits - half_width).float() / half_width

    def forward(self, latent: Tensor) -> Quantized:
        """(B, dim, ...) -> vectors, codes; no loss."""
        bounded = self._bound(self._inner(latent))
        digits = self._round(bounded.detach())
        vectors = straight_through(bounded / (self.levels // 2), self._digits_to_vectors(digits))
        codes = self._shaped((digits * self.place_values).sum(-1))
        return Quantized(self._outer(vectors).movedim(-1, 1), codes)
