"""What every quantizer does, and what it returns."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Quantized(NamedTuple):
    """The result of a quantizer's ``forward``."""

    vectors: Tensor
    """(B, dim, ...) float32, the input of the decoder in training. Gradients pass to the latent."""
    codes: Tensor
    """(B, ...) int64, or flat where the published module returns them flat."""
    loss: Tensor | None = None
    """What the quantizer adds to the training loss, if anything."""


class Quantizer(nn.Module, ABC):
    """Names each latent vector by a code in ``range(codebook_size)``.

    Takes latents of ``latent_dim`` channels and returns vectors of ``dim``; most quantizers have
    them equal. A latent that is not finite gets an arbitrary code: check ``latent.isfinite()``
    first where that matters.
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
            TypeError: codes that are not integers.
            ValueError: a code outside the codebook.
        """
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
            raise TypeError(
                f"codes are {codes.dtype}, but codes are integers: rounding them would name other "
                "vectors. Pass what codes_of returned"
            )
        codes = codes.long()
        if codes.numel():
            check_range(codes, self.codebook_size, "quantizer")
        return codes

    def _check_channels(self, latent: Tensor) -> None:
        if latent.ndim < 2 or latent.shape[1] != self.latent_dim:
            raise ValueError(
                f"the latent has shape {tuple(latent.shape)}, but {type(self).__name__} takes "
                f"(B, {self.latent_dim}, ...): use an encoder with as many channels as the "
                "quantizer, and keep them in dimension 1"
            )


def check_range(codes: Tensor, codebook_size: int, maker: str) -> None:
    """Raise ValueError for int64 codes, at least one, outside ``range(codebook_size)``."""
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= codebook_size:
        raise ValueError(
            f"codes from {low} to {high}, but the codebook has 0 to {codebook_size - 1}: they were "
            f"made by another {maker}, or are damaged"
        )


def straight_through(latent: Tensor, vectors: Tensor) -> Tensor:
    """The exact vectors, with the gradient of the latent; both float32 and of the same shape."""
    return vectors.detach() + (latent - latent.detach())
