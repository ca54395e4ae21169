"""The vector quantizer: a learned codebook, moved by the gradient."""

import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.quantizers.base import Quantized, straight_through
from tokpipe.models.quantizers.codebook import NearestQuantizer, Remap, UnknownIndex


class VectorQuantizer(NearestQuantizer):
    """Names the nearest code vector of a learned codebook.

    ``n_e`` vectors of ``e_dim`` channels, unbounded. The loss pulls each vector to its latents,
    plus ``beta`` times the commitment of the latents to their vector. With ``legacy``, ``beta``
    weighs the pull instead: a published mistake that published models were trained with, and so
    the published default. The loss has the same value either way, with other gradients.
    ``remap`` and ``unknown_index``: see ``CodebookQuantizer``.

    ``forward`` returns the codes flat, (N,), or (N, 1) under ``remap``, as published; with
    ``sane_index_shape`` as (B, ...), which ``codes_of`` always does.
    Source: arXiv:1711.00937; published as ``VectorQuantizer2``, and as ``VectorQuantizer``
    without ``legacy``, which is ``legacy=False`` here.
    """

    embedding: nn.Embedding

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float = 0.25,
        remap: Remap | None = None,
        unknown_index: UnknownIndex = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        super().__init__(n_e, e_dim, remap=remap, unknown_index=unknown_index)
        self.beta = beta
        self.sane_index_shape = sane_index_shape
        self.legacy = legacy
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)

    def forward(self, latent: Tensor) -> Quantized:
        """(B, dim, ...) -> vectors, codes, loss."""
        entries = self._nearest_entries(latent)
        latent = latent.float()
        vectors = self.embedding(entries).float().movedim(-1, 1)
        commitment = F.mse_loss(latent, vectors.detach())
        pull = F.mse_loss(vectors, latent.detach())
        loss = commitment + self.beta * pull if self.legacy else self.beta * commitment + pull
        codes = self._entries_to_codes(entries)
        codes = codes if self.sane_index_shape else self._flat(codes)
        return Quantized(straight_through(latent, vectors), codes, loss)


VectorQuantizer2 = VectorQuantizer
"""The published name of the class with all these arguments."""
