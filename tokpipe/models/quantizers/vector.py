"""The vector quantizer: a learnt codebook, moved by the gradient."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.quantizers.base import Quantized, straight_through
from tokpipe.models.quantizers.codebook import CodebookQuantizer, Remap, UnknownIndex
from tokpipe.models.quantizers.nearest import search


class VectorQuantizer(CodebookQuantizer):
    """Names the nearest code vector of a learnt codebook, by Euclidean distance.

    ``n_e`` vectors of ``e_dim`` channels; vectors are unbounded. ``beta`` weighs the commitment
    of the latent to its vector in the loss, against 1 for the pull of the vector to the latent;
    with ``legacy``, a published mistake that published models were trained with and hence the
    published default, it weighs the pull instead. The loss has the same value either way, other
    gradients. ``remap`` and ``unknown_index``: see ``CodebookQuantizer``.

    ``forward`` returns the codes flat, (N,), or (N, 1) under ``remap``, as published; with
    ``sane_index_shape`` as (B, ...), which ``codes_of`` always does.
    Source: arXiv:1711.00937; published as ``VectorQuantizer2``, and as ``VectorQuantizer``
    without ``legacy``, which is ``legacy=False`` here.
    """

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

    def codes_of(self, latent: Tensor) -> Tensor:
        """(B, dim, ...) -> (B, ...) int64; of vectors equally near, the first."""
        return self._entries_to_codes(self._nearest_entries(latent))

    def _nearest_entries(self, latent: Tensor) -> Tensor:
        self._check_channels(latent)
        codebook = self.embedding.weight.detach().float()
        return search(latent, codebook, codebook.square().sum(1), -2)

    def _vectors(self, codes: Tensor) -> Tensor:
        vectors: Tensor = self.embedding(self._codes_to_entries(codes))
        return vectors.float()

    def forward(self, latent: Tensor) -> Quantized:
        """(B, dim, ...) -> vectors, codes, loss."""
        entries = self._nearest_entries(latent)
        latent = latent.float()
        vectors = self.embedding(entries).float().movedim(-1, 1)
        commitment = F.mse_loss(latent, vectors.detach())
        pull = F.mse_loss(vectors, latent.detach())
        loss = commitment + self.beta * pull if self.legacy else self.beta * commitment + pull
        codes = self._entries_to_codes(entries)
        if not self.sane_index_shape:
            codes = codes.flatten() if self.used is None else codes.reshape(-1, 1)
        return Quantized(straight_through(latent, vectors), codes, loss)


VectorQuantizer2 = VectorQuantizer
"""The published name of the class with all these arguments."""
