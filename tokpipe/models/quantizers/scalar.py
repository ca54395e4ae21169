"""The base of FSQ and LFQ, which round each channel separately and learn no codebook."""

from abc import abstractmethod

from torch import Tensor, nn

from tokpipe.models.quantizers.base import Quantizer
from tokpipe.models.quantizers.nearest import project


class ScalarQuantizer(Quantizer):
    """Rounds ``codebook_dim`` channels, each separately, to one code.

    ``dim`` is the number of channels of the latent. Where it is not the number that is rounded,
    ``project_in`` and ``project_out`` convert there and back, as published.

    With ``num_codebooks = n``, groups of ``codebook_dim`` channels get a code each, in a last
    dimension of the codes, (B, ..., n), which one codebook also has with
    ``keep_num_codebooks_dim``.
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
                f"{num_codebooks=} returns as many codes per position, and keep_num_codebooks_dim="
                "False leaves no dimension for them: leave it out"
            )
        channels = codebook_dim * num_codebooks
        super().__init__(codebook_size, channels if dim is None else dim)
        self.codebook_dim = codebook_dim
        self.num_codebooks = num_codebooks
        self.keep_num_codebooks_dim = num_codebooks > 1 or bool(keep_num_codebooks_dim)
        projected = self.dim != channels
        self.project_in = nn.Linear(self.dim, channels) if projected else nn.Identity()
        self.project_out = nn.Linear(channels, self.dim) if projected else nn.Identity()

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
        return self._outer(self._inner_vectors(codes))

    def _inner(self, latent: Tensor) -> Tensor:
        """(B, dim, ...) -> (B, ..., n, codebook_dim) float32, to be rounded."""
        self._check_channels(latent)
        x = _projected(latent.float().movedim(1, -1), self.project_in)
        inner: Tensor = x.unflatten(-1, (self.num_codebooks, self.codebook_dim))
        return inner

    def _outer(self, inner: Tensor) -> Tensor:
        """(B, ..., n, codebook_dim) -> (B, ..., dim)."""
        return _projected(inner.flatten(-2), self.project_out)

    def _shaped(self, codes: Tensor) -> Tensor:
        return codes if self.keep_num_codebooks_dim else codes.squeeze(-1)


def _projected(x: Tensor, projection: nn.Module) -> Tensor:
    if not isinstance(projection, nn.Linear):
        return x
    return project(x, projection.weight, projection.bias)
