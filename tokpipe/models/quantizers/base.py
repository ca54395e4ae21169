"""What every quantizer does, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantizer's ``forward`` returns."""

    vectors: Tensor
    """(B, dim, ...) float32: what decoders are trained with. Gradients pass to the latent."""
    codes: Tensor
    """(B, ...) int64, or flat where the published module has them flat."""
    loss: Tensor | None = None
    """What the quantizer adds to a training loss, if it has a say."""


class Quantizer(nn.Module, ABC):
    """Names each latent vector by a code in ``range(codebook_size)``.

    ``latent_dim`` is the number of channels taken, ``dim`` of those given back; most quantizers
    have them equal. A latent that is not finite gets some code of the codebook, without meaning:
    who must know asks ``latent.isfinite()`` first.
    """

    def __init__(self, codebook_size: int, dim: int, latent_dim: int | None = None) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.dim = dim
        self.latent_dim = dim if latent_dim is None else latent_dim

    @abstractmethod
    def codes_of(self, latent: Tensor) -> Tensor:
        """(B, latent_dim, ...) -> (B, ...) int64. One clip's codes depend on that clip alone.

        Raises:
            ValueError: a latent with another number of channels.
        """

    def vectors_of(self, codes: Tensor) -> Tensor:
        """(B, ...) of any integers -> (B, dim, ...) float32.

        Raises:
            TypeError: codes that are no integers.
            ValueError: a code that the codebook does not have.
        """
        return self._vectors(self._checked(codes)).movedim(-1, 1)

    @abstractmethod
    def forward(self, latent: Tensor) -> Quantized:
        """(B, latent_dim, ...) -> vectors, codes and, where there is one, a loss."""

    @abstractmethod
    def _vectors(self, codes: Tensor) -> Tensor:
        """(B, ...) int64, known to be in range -> (B, ..., dim) float32."""

    def _checked(self, codes: Tensor) -> Tensor:
        """The codes as int64, or the error that says what is wrong with them."""
        if codes.is_floating_point() or codes.is_complex():
            raise TypeError(
                f"codes are {codes.dtype}, but codes are integers: rounding them would name other "
                "vectors. Pass what codes_of returned"
            )
        codes = codes.long()
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(
                f"codes from {int(codes.min())} to {int(codes.max())}, but the codebook has 0 to "
                f"{self.codebook_size - 1}: they were made by another quantizer, or are damaged"
            )
        return codes

    def _check_channels(self, latent: Tensor) -> None:
        if latent.ndim < 2 or latent.shape[1] != self.latent_dim:
            raise ValueError(
                f"the latent has shape {tuple(latent.shape)}, but {type(self).__name__} takes "
                f"(B, {self.latent_dim}, ...): channels stand in dimension 1. Give the encoder as "
                "many channels as the quantizer, or move them there"
            )


def straight_through(latent: Tensor, vectors: Tensor) -> Tensor:
    """The vectors, to the bit, with the gradient of the latent; both of one shape, float32."""
    return vectors.detach() + (latent - latent.detach())
