"""Vector quantizers: the codebook is moved by the gradient, or follows the latents by averages."""

from abc import abstractmethod

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.quantizers.base import Quantized, straight_through
from tokpipe.models.quantizers.codebook import CodebookQuantizer, Remap, UnknownIndex
from tokpipe.models.quantizers.nearest import search


class NearestQuantizer(CodebookQuantizer):
    """Names the nearest code vector by Euclidean distance.

    A subclass has an ``embedding``, with a ``weight`` (K, dim), that maps entries to vectors.
    """

    embedding: nn.Module

    def codes_of(self, latent: Tensor) -> Tensor:
        """(B, dim, ...) -> (B, ...) int64; of vectors equally near, the first."""
        return self._entries_to_codes(self._nearest_entries(latent))

    def _nearest_entries(self, latent: Tensor) -> Tensor:
        self._check_channels(latent)
        assert isinstance(self.embedding.weight, Tensor)
        codebook = self.embedding.weight.detach().float()
        # Without the latent's norm, which is the same for every code vector: adding it would only
        # lose precision.
        return search(latent, codebook, codebook.square().sum(1), -2)

    def _vectors(self, codes: Tensor) -> Tensor:
        vectors: Tensor = self.embedding(self._codes_to_entries(codes))
        return vectors.float()

    def forward(self, latent: Tensor) -> Quantized:
        """(B, dim, ...) -> vectors, codes, loss."""
        entries = self._nearest_entries(latent)
        latent = latent.float()
        vectors = self.embedding(entries).float().movedim(-1, 1)
        loss = self._loss(latent, vectors, entries)
        codes = self._flat(self._entries_to_codes(entries))
        return Quantized(straight_through(latent, vectors), codes, loss)

    @abstractmethod
    def _loss(self, latent: Tensor, vectors: Tensor, entries: Tensor) -> Tensor:
        """The loss of a training step; latent and vectors (B, dim, ...) float32."""


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

    def _loss(self, latent: Tensor, vectors: Tensor, entries: Tensor) -> Tensor:
        commitment = F.mse_loss(latent, vectors.detach())
        pull = F.mse_loss(vectors, latent.detach())
        return commitment + self.beta * pull if self.legacy else self.beta * commitment + pull

    def _flat(self, codes: Tensor) -> Tensor:
        return codes if self.sane_index_shape else super()._flat(codes)


VectorQuantizer2 = VectorQuantizer
"""The published name of the class with all these arguments."""


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

    ``forward`` returns the codes flat, (N,), or (N, 1) under ``remap``.
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

    def _loss(self, latent: Tensor, vectors: Tensor, entries: Tensor) -> Tensor:
        loss = self.beta * F.mse_loss(latent, vectors)
        if self.training:
            rows = latent.detach().movedim(1, -1).reshape(-1, self.dim)
            self.embedding.follow(rows, entries.flatten())
        return loss
