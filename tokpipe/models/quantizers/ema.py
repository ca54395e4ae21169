"""The vector quantizer whose codebook follows the latents by moving averages."""

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.quantizers.base import Quantized, straight_through
from tokpipe.models.quantizers.codebook import NearestQuantizer, Remap, UnknownIndex


class EMACodebook(nn.Module):
    """Code vectors as the quotient of two moving averages: of latents, and of their number.

    State, as published: ``weight`` (K, dim), ``cluster_size`` (K,), ``embed_avg`` (K, dim). They
    are parameters that no optimizer moves, so a checkpoint's averages load like weights.
    """

    def __init__(self, num_vectors: int, dim: int, decay: float, eps: float) -> None:
        super().__init__()
        if not 0 <= decay < 1 or eps <= 0:
            raise ValueError(
                f"decay={decay} and eps={eps}: decay, the part of the average that a step keeps, "
                "must be at least 0 and below 1; eps, which guards a division, must be above 0"
            )
        self.decay = decay
        self.eps = eps
        weight = torch.randn(num_vectors, dim)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.cluster_size = nn.Parameter(torch.zeros(num_vectors), requires_grad=False)
        self.embed_avg = nn.Parameter(weight.clone(), requires_grad=False)

    def forward(self, entries: Tensor) -> Tensor:
        """(...) int64 -> (..., dim) float32."""
        return F.embedding(entries, self.weight.detach()).float()

    @torch.no_grad()
    def follow(self, latents: Tensor, entries: Tensor) -> None:
        """Take one step: latents (N, dim) float32 and the entries (N,) int64 that name them.

        Where ``torch.distributed`` is set up, the step uses the latents of all ranks, and each
        rank must take it. Latents that are not finite are left out, since a single one would spoil
        the averages permanently.
        """
        if torch.finfo(self.cluster_size.dtype).bits < 32:
            raise RuntimeError(
                f"the codebook's averages are {self.cluster_size.dtype}, in which steps of "
                f"1 - decay = {1 - self.decay:.3g} round away. Train in float32, with "
                "torch.autocast for speed"
            )
        finite = latents.isfinite().all(dim=1)
        latents = latents.where(finite[:, None], 0).to(self.embed_avg.dtype)
        sums = torch.zeros_like(self.embed_avg).index_add_(0, entries, latents)
        counts = torch.zeros_like(self.cluster_size).index_add_(
            0, entries, finite.to(self.cluster_size.dtype)
        )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(counts)
        self.cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.embed_avg.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        # Smoothed, so that a vector without latents is not divided by zero.
        total, num = self.cluster_size.sum(), len(self.cluster_size)
        sizes = (self.cluster_size + self.eps) / (total + num * self.eps) * total
        self.weight.copy_(self.embed_avg / sizes.unsqueeze(1))


class EMAVectorQuantizer(NearestQuantizer):
    """Names the nearest code vector of a codebook made of moving averages of the latents.

    ``n_embed`` vectors of ``embedding_dim`` channels. The loss is ``beta`` times the commitment of
    the latents to their vector. In ``train()`` mode each ``forward`` moves the codebook after
    using it, keeping ``decay`` of the averages; in ``eval()`` mode nothing moves. As published,
    the averages start from random vectors and zero latents: vectors that the first step does not
    name are then divided by ``eps``, and are not used for about ``log(eps) / log(decay)``
    steps, 1,146 by default.

    ``remap`` and ``unknown_index``: see ``CodebookQuantizer``; published code accepts them, and
    leaves the codes unchanged.

    ``forward`` returns the codes flat, (N,), or (N, 1) under ``remap``, as ``VectorQuantizer``.
    Source: arXiv:1711.00937, appendix A.1.
    """

    embedding: EMACodebook

    def __init__(
        self,
        n_embed: int,
        embedding_dim: int,
        beta: float,
        decay: float = 0.99,
        eps: float = 1e-5,
        remap: Remap | None = None,
        unknown_index: UnknownIndex = "random",
    ) -> None:
        super().__init__(n_embed, embedding_dim, remap=remap, unknown_index=unknown_index)
        self.beta = beta
        self.embedding = EMACodebook(n_embed, embedding_dim, decay, eps)

    def forward(self, latent: Tensor) -> Quantized:
        """(B, dim, ...) -> vectors, codes, loss; moves the codebook in training."""
        entries = self._nearest_entries(latent)
        latent = latent.float()
        vectors = self.embedding(entries).movedim(-1, 1)
        loss = self.beta * F.mse_loss(latent, vectors)
        if self.training:
            rows = latent.detach().movedim(1, -1).reshape(-1, self.dim)
            self.embedding.follow(rows, entries.flatten())
        codes = self._flat(self._entries_to_codes(entries))
        return Quantized(straight_through(latent, vectors), codes, loss)
